"""Adapters on the LLM: audio goes through them, they are kept and merged, and what cannot be had is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pal_audio.errors import PalError
from pal_audio.integration.key_values import audio_kv, find_layers
from pal_audio.model import PalForConditionalGeneration, load
from pal_audio.model.adapters import is_adapter_parameter
from pal_audio.model.export import export
from tests.tiny import batch, message, noise, tiny_model

# Where keys and values come from, if not from `k_proj` and `v_proj`.
FUSED = {"phi3": "qkv_proj", "gpt_neox": "query_key_value", "gpt2": "c_attn"}
MATRIX = [(family, arm) for family in ("llama", "qwen2", "gemma3_text", "olmo2", "phi3") for arm in ("plits", "lal", "pal")]
MATRIX += [(family, "pal") for family in ("gemma2", "cohere2", "glm4", "qwen3_moe", "gpt_neox", "gpt2", "gpt_oss")]
CLIP = noise(0.7)


def adapter(kind: str, **changes: Any) -> dict[str, Any]:
    return {"type": kind, "r": 3, "target": "all_linear", **changes}


def logits(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("family", "arm"), MATRIX)
def test_adapter_saved_and_merged_give_the_same_logits(family: str, arm: str, kind: str, tmp_path: Path) -> None:
    """Invariant 8: save -> load and adapter -> merged, by the function behind `pal export`."""
    # Weights of a usual size: those of the other tests make logits in which rounding alone passes the default tolerances.
    usual = {"initializer_range": 0.05}
    model, processor = tiny_model(family, arm, llm=usual, adapter=adapter(kind))
    plain, _ = tiny_model(family, arm, llm=usual)
    inputs = batch(processor, [message(CLIP), message(noise(0.4), system=None)])
    expected = logits(model, inputs)
    assert not torch.allclose(expected, logits(plain, inputs), atol=1e-3), "the adapter does something"
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again, _ = load(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    torch.testing.assert_close(logits(again, inputs), expected)
    merged, _ = load(export(tmp_path / "model", tmp_path / "merged", merge=True))
    assert merged.config.adapter is None
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}
    torch.testing.assert_close(logits(merged, inputs), expected)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) is PalForConditionalGeneration
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]


@pytest.mark.parametrize("family", sorted({family for family, _ in MATRIX}))
def test_key_and_value_adapters_apply_to_audio_and_learn_from_it(family: str) -> None:
    targets = [FUSED[family]] if family in FUSED else ["k_proj", "v_proj"]
    model, processor = tiny_model(family, "lal", adapter=adapter("lora", target=targets, dropout=0.5))
    plain, _ = tiny_model(family, "lal")
    model.prove_llm()
    model.train()
    model.prove_llm()  # dropout must not look like another family
    assert all(module.training for module in model.modules())
    model.eval()
    rule, plain_rule = model._rules[1], plain._rules[1]
    inputs_BAD, positions = torch.randn(1, 3, 32), torch.arange(3)[None]
    for ours, theirs in zip(audio_kv(rule, inputs_BAD, positions), audio_kv(plain_rule, inputs_BAD, positions), strict=True):
        assert not torch.allclose(ours, theirs, atol=1e-3)
    sum(side.square().sum() for side in audio_kv(rule, inputs_BAD, positions)).backward()  # type: ignore[union-attr]
    learnt = {name for name, p in model.named_parameters() if is_adapter_parameter(name) and p.grad is not None}
    assert learnt
    assert all(re.search(r"\.(layers|h)\.1\.(self_attn|attention|attn)\.", name) for name in learnt)
    # The whole model: with the queries' way closed, what reaches the adapter of layer 0 comes through its keys and values.
    model.zero_grad()
    model(**batch(processor, [message(CLIP)], return_labels=False)).logits.square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if is_adapter_parameter(name)}
    assert all(grad is not None and bool(grad.any()) for grad in grads.values())


def test_a_memory_of_other_adapter_weights_or_scale_is_refused() -> None:
    model, processor = tiny_model("llama", "lal", adapter=adapter("lora"))
    inputs = batch(processor, [message(CLIP)])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    with torch.no_grad():
        model(inputs["input_ids"], audio_memory=memory)
        model.language_model.model.layers[1].self_attn.v_proj.lora_A["default"].weight[0, 0] += 0.5
    with pytest.raises(PalError, match="made by another model"):
        model(inputs["input_ids"], audio_memory=memory)
    other, _ = tiny_model("llama", "lal", adapter=adapter("lora", alpha=32))
    assert other.audio_fingerprint() != tiny_model("llama", "lal", adapter=adapter("lora"))[0].audio_fingerprint()


def test_audio_that_does_not_reach_its_layers_is_an_error_with_adapters_too() -> None:
    model, processor = tiny_model("llama", "lal", adapter=adapter("lora"))
    inputs = batch(processor, [message(CLIP)])
    model.language_model.set_attn_implementation("sdpa")
    with torch.no_grad(), pytest.raises(RuntimeError, match="did not reach"):
        model(**inputs)


def test_an_adapter_starts_as_the_identity_and_freezes_the_llm() -> None:
    plain, processor = tiny_model("llama", "pal")
    inputs = batch(processor, [message(CLIP)])
    expected = logits(plain, inputs)
    hooks = [layer.input_layernorm.register_forward_hook(lambda *_: None) for layer in find_layers(plain.language_model)]  # type: ignore[operator, union-attr]
    by_calls = logits(plain, inputs)
    for hook in hooks:
        hook.remove()
    config = plain.config.__class__(**{**plain.config.to_dict(), "adapter": adapter("lora")})
    model = PalForConditionalGeneration(config, plain.language_model)
    model.encoders, model.streams, model.marker = plain.encoders, plain.streams, plain.marker
    found = logits(model.eval(), inputs)
    torch.testing.assert_close(found, expected)  # to rounding: a plain map and its norm are one product, an adapter's is called
    torch.testing.assert_close(found, by_calls, rtol=0, atol=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("language_model.") and not is_adapter_parameter(n)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "lora", "target": ["q_prj"]}, "'q_prj' is no linear module.*did you mean 'q_proj'"),
        ({"type": "lora", "target": ["lm_head"]}, "'lm_head' is no linear module"),
        ({"type": "lora", "target": []}, r"\[\] must be all_linear or a list"),
        ({"type": "lora", "target": "all"}, "'all' must be all_linear or a list"),
        ({"type": "lroa"}, "type"),
        ({"rank": 3}, "unknown key 'rank'"),
        ({"r": 0}, "r: "),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_what_is_wrong_is_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        tiny_model("llama", "lal", adapter=options)
    assert "\n" not in str(caught.value)


def test_export_overwrites_nothing_by_itself(tmp_path: Path) -> None:
    model, processor = tiny_model("llama", "lal")
    source, out = tmp_path / "model", tmp_path / "deep" / "out"
    model.save_pretrained(source)
    processor.save_pretrained(source)
    with pytest.warns(UserWarning, match="has no adapter"):
        export(source, out, merge=True)
    assert not [path for path in out.parent.iterdir() if path.name != "out"]
    with pytest.raises(PalError, match="not empty; choose another folder, or --overwrite"):
        export(source, out)
    (out / "stray.txt").write_text("of the older one")
    export(source, out, overwrite=True)
    assert not (out / "stray.txt").exists()
    load(out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for target, words in ((tmp_path / "mine", "no model"), (source, "is to be exported"), (tmp_path, "is to be exported")):
        with pytest.raises(PalError, match=words):
            export(source, target, overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    with pytest.raises(PalError, match="is a file"):
        export(source, tmp_path / "mine" / "notes.txt")
