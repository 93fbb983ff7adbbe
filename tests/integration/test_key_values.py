"""The K/V rule against each layer's own keys and values, at span and zero positions, and with adapters."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from pal_audio.integration.key_values import LayerKeyValues, audio_kv, embedding_rms
from pal_audio.integration.proof import layer_own_kv, prove
from tests.tiny import FAMILIES, llm_config, perturb, tiny_model


def llm_of(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(llm_config(family, 64), attn_implementation="eager").eval()
    perturb(llm)
    return llm


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_rule_equals_the_layer_exactly(family: str) -> None:
    llm = llm_of(family)
    rules = [LayerKeyValues(llm, index) for index in range(4)]
    prove(rules)
    inputs = torch.randn(2, 5, 32)
    for rule in rules:
        for positions in (torch.arange(5)[None] + 7, torch.zeros(1, 5, dtype=torch.int64)):
            ours, own = audio_kv(rule, inputs, positions), layer_own_kv(rule, inputs, positions)
            torch.testing.assert_close(ours[0], own[0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(ours[1], own[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["smollm3", "cohere2"])
def test_layers_without_rotary_leave_keys_alone_and_the_others_do_not(family: str) -> None:
    llm = llm_of(family)
    inputs = torch.randn(1, 3, 32)
    for index, rotates in enumerate([1, 0, 1, 0]):
        rule = LayerKeyValues(llm, index)
        keys = rule.project(inputs)[0]
        rotated = rule.rotate(keys, rule.rotary_tables(inputs, torch.arange(3)[None]))
        assert torch.equal(keys, rotated) != bool(rotates)


def test_an_adapter_on_keys_applies_to_audio_and_learns_from_it() -> None:
    """LAL + LoRA: the modules are called, so an adapter put on the LLM is on audio's way, too."""
    from peft import LoraConfig, get_peft_model

    llm = llm_of("llama")
    inputs = torch.randn(1, 4, 32)
    bare = LayerKeyValues(llm, 1).project(inputs)
    adapted = get_peft_model(llm, LoraConfig(r=2, target_modules=["k_proj", "v_proj"], init_lora_weights=False))
    rule = LayerKeyValues(adapted.base_model.model, 1)
    keys, values = rule.project(inputs)
    assert not torch.allclose(keys, bare[0])
    assert not torch.allclose(values, bare[1])
    (keys.sum() + values.pow(2).sum()).backward()
    learned = [name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert {"k_proj", "v_proj"} == {name.split(".")[-4] for name in learned if "lora_B" in name}


def test_the_embeddings_rms_is_that_of_the_modules_output() -> None:
    """Gemma's embedding module multiplies its rows by sqrt(width)."""
    llm = llm_of("gemma3_text")
    raw = llm.get_input_embeddings().weight[:64].float().pow(2).mean().sqrt()
    assert embedding_rms(llm) == pytest.approx(float(raw) * 32**0.5, rel=1e-3)


def test_the_proof_runs_under_another_default_device() -> None:
    """As where a model is built inside `with torch.device("cuda")`."""
    model, _ = tiny_model("llama", "lal")
    with torch.device("meta"):
        model.prove_llm()
