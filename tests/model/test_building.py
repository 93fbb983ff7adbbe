"""A pretrained LLM as it is published, in bfloat16 and in a folder, becomes a model that trains in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pal_audio.errors import PalError
from pal_audio.model import ModelSpec, build_model, load
from pal_audio.model.adapters import AdapterConfig
from pal_audio.model.tokenizer import train_tokenizer
from tests.tiny import TINY_ENCODER, batch, llm_config, message, noise, tokenizer_texts


@pytest.mark.parametrize("adapter", [None, "lora", "dora"])
@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
def test_an_llm_of_bfloat16_weights_is_built_and_kept_in_float32(arm: str, adapter: str | None, tmp_path: Path) -> None:
    """LAL failed on mixed types, and steps of 2e-5 are lost in bfloat16 weights."""
    tokenizer = train_tokenizer(tokenizer_texts(), 300)
    llm = AutoModelForCausalLM.from_config(llm_config("llama", len(tokenizer))).to(torch.bfloat16)
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    spec = ModelSpec(llm=str(tmp_path / "llm"), preset=arm, encoder=TINY_ENCODER)
    model, processor = build_model(spec, adapter=AdapterConfig(type=adapter, target="all_linear") if adapter else None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    inputs = batch(processor, [message(noise(0.6))])
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        again, _ = load(tmp_path / "model")
        assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
        torch.testing.assert_close(again(**inputs).logits, expected)
        again.merge_adapter()
        torch.testing.assert_close(again(**inputs).logits, expected)


SMALL: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "tokenizer": {"vocab_size": 300}}


def test_the_size_of_heads_is_a_field_where_layers_read_it() -> None:
    """Qwen3-MoE's configuration does not list it; GPT-2's layers do not read it."""
    experts = {"model_type": "qwen3_moe", "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    model, _ = build_model(ModelSpec(llm={**SMALL, **experts}, preset="lal", encoder=TINY_ENCODER), ["a"])
    assert model.language_model.model.layers[0].self_attn.head_dim == 8
    with pytest.raises(PalError, match="gpt2 has no field 'head_dim'"):
        build_model(ModelSpec(llm={**SMALL, "model_type": "gpt2", "head_dim": 16}, preset="lal", encoder=TINY_ENCODER), ["a"])
