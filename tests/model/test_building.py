"""A pretrained LLM as it is published, in bfloat16 and in a folder, becomes a model that trains in float32."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

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
