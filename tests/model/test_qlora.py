"""An LLM in 4 bits: what is kept is NF4 with double quantisation, what is computed is the LLM of it and the adapter."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from pal_audio.errors import PalError
from pal_audio.integration.key_values import UnsupportedLlmError, audio_kv, compute_dtype, find_layers
from pal_audio.model import ModelSpec, PalConfig, PalForConditionalGeneration, build_model, describe, load
from pal_audio.model.adapters import AdapterConfig, is_adapter_parameter
from pal_audio.model.export import export
from pal_audio.model.four_bit import FourBitLinear, import_bitsandbytes, load_four_bit, quantise
from tests.tiny import TINY_ENCODER, batch, llm_config, message, noise, tiny_model

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes, an optional extra, is not installed"
)
ROOT = Path(__file__).parents[2]
FAMILIES = ("llama", "qwen2", "gemma3_text", "olmo2", "phi3")
CLIP = noise(0.7)
# Weights of a usual size: in those of the other tests, rounding alone passes the default tolerances.
USUAL = {"initializer_range": 0.05, "hidden_size": 64, "intermediate_size": 128}
# The paper's appendix E: what the 16 codes of NormalFloat stand for.
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def adapter(**changes: Any) -> dict[str, Any]:
    return {"type": "qlora", "r": 3, "target": "all_linear", **changes}


def four_bit_model(family: str = "llama", arm: str = "pal", **options: Any) -> tuple[Any, Any]:
    return tiny_model(family, arm, llm={**USUAL, **options.pop("llm", {})}, adapter=adapter(**options))


def logits(model: Any, inputs: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, **options).logits


def weights_by_hand(linear: FourBitLinear) -> torch.Tensor:
    """What a module's bits mean, by the paper: code of a weight times scale of its block, which is mean + code times scale."""
    floats = linear.constants.view(torch.float32)
    mean, codes, scales = floats[0], floats[1:257], floats[257:]
    absmax = codes[linear.absmax.long()] * scales.repeat_interleave(256)[: len(linear.absmax)] + mean
    pairs = linear.weight.flatten().long()
    levels = NF4[torch.stack([pairs >> 4, pairs & 15], 1).flatten()]
    size = linear.out_features, linear.in_features
    return (levels * absmax.repeat_interleave(64)).view(size)


def reference(model: Any, family: str, arm: str) -> Any:
    """The same model without an adapter and without 4 bits: each weight is what the bits mean, plus the low-rank product."""
    plain, _ = tiny_model(family, arm, llm=USUAL)
    state = plain.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            place = name.removesuffix(".base_layer")
            layer: Any = model.get_submodule(place)
            delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            state[f"{place}.weight"] = (weights_by_hand(module) + delta).detach()
    plain.load_state_dict(state)
    return plain


@needs_bitsandbytes
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (7, 192), (320, 64)])
def test_a_weight_is_the_nearest_level_of_its_block_and_a_scale_is_kept_in_8_bits(rows: int, columns: int) -> None:
    linear = nn.Linear(columns, rows)
    ours = FourBitLinear.of(linear)
    flat, found = linear.weight.detach().flatten(), weights_by_hand(ours).flatten()
    num_blocks = flat.numel() // 64
    sizes = [(tensor.numel(), tensor.dtype) for tensor in (ours.weight, ours.absmax, ours.constants)]
    nested = -(-num_blocks // 256)
    assert sizes == [(flat.numel() // 2, torch.uint8), (num_blocks, torch.uint8), (257 + nested, torch.int32)]
    for start in range(0, flat.numel(), 64):
        block, kept = flat[start : start + 64], found[start : start + 64]
        scale = block.abs().max()
        nearest = (block[:, None] / scale - NF4).abs().min(1).values * scale
        assert bool(((block - kept).abs() <= nearest + 0.02 * scale).all())  # 0.02: the scale's own rounding
    torch.testing.assert_close(ours.dequantised().weight, weights_by_hand(ours))
    inputs = torch.randn(2, 3, columns)
    torch.testing.assert_close(ours(inputs), nn.functional.linear(inputs, weights_by_hand(ours), linear.bias))
    assert ours(inputs[:0]).shape == (0, 3, rows)


@needs_bitsandbytes
@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_saved_and_merged_are_the_dequantised_llm_and_its_adapter(family: str, arm: str, tmp_path: Path) -> None:
    """Invariant 8 in 4 bits. Measured: logits up to 1.8 differ by at most 2.6e-6."""
    model, processor = four_bit_model(family, arm)
    inputs = batch(processor, [message(CLIP), message(noise(0.4), system=None)])
    expected = logits(reference(model, family, arm), inputs)
    ours = logits(model, inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again, _ = load(tmp_path / "model")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(logits(again, inputs), ours, rtol=1e-5, atol=2e-5)
    merged, _ = load(export(tmp_path / "model", tmp_path / "merged", merge=True))
    plain, _ = tiny_model(family, arm, llm=USUAL)
    assert merged.config.adapter is None
    shapes = {name: (parameter.shape, parameter.dtype) for name, parameter in plain.named_parameters()}
    assert {name: (parameter.shape, parameter.dtype) for name, parameter in merged.named_parameters()} == shapes
    torch.testing.assert_close(logits(merged, inputs), ours, rtol=1e-5, atol=2e-5)


@needs_bitsandbytes
def test_4_bits_are_few_and_only_the_layers_linears_have_them() -> None:
    model, processor = four_bit_model(target=["q_proj"])
    plain, _ = tiny_model("llama", "pal", llm=USUAL)
    inputs = batch(processor, [message(CLIP)])
    assert not torch.allclose(logits(model, inputs), logits(plain, inputs), atol=1e-3), "4 bits are not the published weights"
    ours = {name.replace(".base_layer", ""): parameter for name, parameter in model.named_parameters()}
    quantised = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear) and ".layers." in name}
    quantised = {f"{name}.weight" for name in quantised if name.startswith("language_model.")}
    assert len(quantised) == 4 * 7
    for name, parameter in plain.named_parameters():
        if name in quantised:
            assert ours[name].dtype == torch.uint8
        else:
            assert torch.equal(ours[name], parameter), name


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["llama", "phi3", "olmo2"])
def test_audio_passes_the_4_bit_weights_and_their_adapter_and_the_proof_sees_it(family: str) -> None:
    model, _ = four_bit_model(family, "lal")
    whole = reference(model, family, "lal")
    model.prove_llm()
    inputs_BAD, positions = torch.randn(1, 3, 64), torch.arange(3)[None]
    for ours, theirs in zip(
        audio_kv(model._rules[1], inputs_BAD, positions), audio_kv(whole._rules[1], inputs_BAD, positions), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert model._rules[1].modules()
    # A way around the 4-bit weights: the proof must refuse what differs by their rounding alone.
    rule, own = model._rules[1], tiny_model(family, "lal", llm=USUAL)[0]._rules[1]
    rule._key_value_projection = own._key_value_projection
    with pytest.raises(UnsupportedLlmError, match="of layer 1 differ"):
        model.prove_llm()


@needs_bitsandbytes
def test_a_memory_of_other_bits_is_refused() -> None:
    model, processor = four_bit_model("llama", "lal", target=["q_proj"])
    inputs = batch(processor, [message(CLIP)])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    logits(model, {"input_ids": inputs["input_ids"], "audio_memory": memory})
    value = model.language_model.model.layers[1].self_attn.v_proj
    for bits in (value.weight, value.absmax, value.constants):
        bits[0] ^= 1
        with pytest.raises(PalError, match="made by another model"):
            model(inputs["input_ids"], audio_memory=memory)
        bits[0] ^= 1
    logits(model, {"input_ids": inputs["input_ids"], "audio_memory": memory})


@needs_bitsandbytes
def test_casts_spare_the_bits_and_choose_the_dtype_of_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured over families and presets: logits up to 1.8 move by up to 0.06 in bfloat16, by its rounding or by merging."""
    model, processor = four_bit_model("llama", "pal")
    inputs = batch(processor, [message(CLIP)])
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    low = PalForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    for again in (low, load(tmp_path)[0].to(torch.bfloat16)):
        bits = [(name, p) for name, p in again.named_parameters() if not p.is_floating_point()]
        assert len(bits) == 3 * 4 * 7
        assert all(torch.equal(parameter, model.get_parameter(name)) for name, parameter in bits)
        assert compute_dtype(find_layers(again.language_model)[0]) == torch.bfloat16
        again.prove_llm()
        ours = logits(again, inputs)
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.05)
    low.merge_adapter()
    torch.testing.assert_close(logits(low, inputs).float(), expected, rtol=0, atol=0.05)
    linear = nn.Linear(64, 32)
    ours = FourBitLinear.of(linear)
    inputs_BD = torch.randn(5, 64, requires_grad=True)
    bnb, multiplied = import_bitsandbytes(), []
    multiply = bnb.matmul_4bit
    monkeypatch.setattr(bnb, "matmul_4bit", lambda *a, **k: multiplied.append((a[0].dtype, a[2].dtype)) or multiply(*a, **k))
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = ours(inputs_BD), ours.dequantised()(inputs_BD)
    assert multiplied == [(torch.bfloat16, torch.bfloat16)], "nothing is dequantised to float32 first"
    assert found.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(found, theirs, rtol=0.02, atol=0.01)
    grads = [torch.autograd.grad(output.float().square().sum(), inputs_BD)[0] for output in (found, theirs)]
    assert grads[0].dtype == torch.float32
    torch.testing.assert_close(grads[0], grads[1], rtol=0.05, atol=0.05)


@needs_bitsandbytes
@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
def test_gradients_are_those_of_the_dequantised_llm_packed_and_checkpointed_too(arm: str) -> None:
    model, processor = four_bit_model("llama", arm, dropout=0.0)
    whole = reference(model, "llama", arm)
    whole.language_model.requires_grad_(False)
    turns = [[*message(clip), {"role": "assistant", "content": "a bell"}] for clip in (CLIP, noise(0.4))]
    inputs = batch(processor, turns, return_labels=True)
    grads = []
    for which, options in ((model, {}), (model, {"packed": True}), (model, {"checkpointed": True}), (whole, {})):
        which.zero_grad()
        which.train()
        if options.pop("checkpointed", False):
            which.gradient_checkpointing_enable()
        which(**inputs, use_cache=False, **options).loss.backward()
        grads.append({name: p.grad for name, p in which.named_parameters() if p.grad is not None})
    assert {name for name in grads[0] if name.startswith("language_model.")} == {
        name for name, _ in model.named_parameters() if is_adapter_parameter(name)
    }
    for others in grads[1:3]:
        assert others.keys() == grads[0].keys()
        for name, grad in grads[0].items():
            torch.testing.assert_close(others[name], grad, rtol=1e-4, atol=1e-5)
    for name, grad in grads[3].items():
        torch.testing.assert_close(grads[0][name], grad, rtol=1e-4, atol=1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("tied", [True, False])
def test_a_published_llm_is_quantised_as_it_is_read(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, processor = tiny_model("llama", "lal", llm=USUAL | {"tie_word_embeddings": tied})
    plain.language_model.to(torch.bfloat16).save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    seen: list[Any] = []
    read = AutoModelForCausalLM.from_pretrained

    def reading(*args: Any, **kwargs: Any) -> Any:
        seen.append(read(*args, **kwargs))
        assert all(module.weight.dtype == torch.uint8 for module in linears(seen[-1]))
        return seen[-1]

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", reading)
    spec = ModelSpec(llm=str(tmp_path), preset="lal", encoder=TINY_ENCODER)
    model, _ = build_model(spec, adapter=AdapterConfig(type="qlora", target="all_linear"))
    assert seen, "the weights came by transformers' own way"
    expected = plain.language_model.float()
    quantise(expected)
    ours = {name.replace(".base_layer", ""): p for name, p in model.language_model.named_parameters()}
    for name, parameter in expected.named_parameters():
        assert torch.equal(ours[name], parameter), name
        assert ours[name].dtype == parameter.dtype
    assert type(model.language_model.lm_head) is nn.Linear
    assert (model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path / "out")
    assert "quantization" not in (tmp_path / "out" / "config.json").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["adapter"]["type"] == "qlora"
    again = PalForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    again.half().float()  # nothing of transformers' own guards is left
    stored = load_file(tmp_path / "out" / "model.safetensors")
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert size == describe(model)["bytes"]


def linears(llm: nn.Module) -> list[nn.Linear]:
    return [m for layer in find_layers(llm) for m in layer.modules() if isinstance(m, nn.Linear)]


@needs_bitsandbytes
def test_sizes_count_weights_and_the_bytes_that_hold_them() -> None:
    """Also the arithmetic of recipes/finetune-qlora-24gb.yaml, on the real shape without its memory."""
    ours, plain = describe(four_bit_model()[0]), describe(tiny_model("llama", "pal", llm=USUAL)[0])
    adapter_size = ours["parameters"].pop("llm adapter")
    assert ours["parameters"] == plain["parameters"]
    sizes = [64 * 64, 64 * 32, 64 * 32, 64 * 64, 64 * 128, 64 * 128, 128 * 64]
    packed = 4 * sum(size // 2 + size // 64 + 4 * (257 + 1) for size in sizes)
    assert ours["bytes"] == plain["bytes"] - 4 * 4 * sum(sizes) + packed + 4 * adapter_size
    shape = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
             "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}  # fmt: skip
    audio = four_bit_model(arm="lal")[0].config.audio_config
    with torch.device("meta"):
        config = PalConfig(llm_config("llama", 128_256, **shape), audio, 1, 2, adapter=adapter(r=16))
        model = PalForConditionalGeneration(config)
    large = describe(model)
    assert round(large["parameters"]["llm"] / 1e9, 2) == 3.21
    assert round(large["parameters"]["llm adapter"] / 1e6, 1) == 24.3
    assert round(large["parameters"]["projectors 0"] / 1e6) == 264
    sizes = {"layers": 0, "rest": 0}
    for name, parameter in model.language_model.named_parameters():
        if not is_adapter_parameter(name):
            linear = ".layers." in name and "norm" not in name
            sizes["layers" if linear else "rest"] += parameter.numel() * parameter.element_size()
    assert {name: round(size / 1e9, 2) for name, size in sizes.items()} == {"layers": 1.45, "rest": 1.58}


@needs_bitsandbytes
def test_what_cannot_be_quantised_is_one_line(tmp_path: Path) -> None:
    plain, _ = tiny_model("llama", "lal")
    for layer in find_layers(plain.language_model):
        layer.self_attn = layer.mlp = nn.Identity()
    with pytest.raises(PalError, match="the layers of LlamaForCausalLM have no linear modules"):
        quantise(plain.language_model)
    with pytest.raises(PalError, match="a multiple of 64 inputs, one has 32; use lora"):
        tiny_model("llama", "lal", adapter=adapter())
    config = llm_config("llama", 40)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="quantised already"):
        load_four_bit(str(tmp_path), None)


def test_without_bitsandbytes_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest))
    for wrong in (AdapterConfig(type="qlora").check, import_bitsandbytes, four_bit_model):
        with pytest.raises(PalError, match=r"needs bitsandbytes: pip install 'pal-audio\[qlora\]'") as caught:
            wrong()
        assert "\n" not in str(caught.value)
    tiny_model(adapter={"type": "lora"})


@needs_bitsandbytes
@pytest.mark.parametrize(
    "code",
    [
        "from pal_audio.model.four_bit import import_bitsandbytes; import_bitsandbytes()",
        "from tests.tiny import tiny_model; tiny_model(adapter={'type': 'lora'})",
    ],
    ids=["alone", "before peft"],
)
def test_bitsandbytes_is_imported_in_silence_and_fetches_nothing(code: str, tmp_path: Path) -> None:
    """Where `kernels` is installed, bitsandbytes fetches code from a hub when it is imported on some processors."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    raise SystemExit('fetched')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}\nimport bitsandbytes, kernels\nkernels.get_kernel\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_bitsandbytes
def test_bits_that_were_cast_are_an_error_not_a_result() -> None:
    """As a sharding with mixed precision might do that casts integers too."""
    linear = FourBitLinear.of(nn.Linear(64, 32))
    linear.weight = nn.Parameter(linear.weight.bfloat16(), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"4-bit weights were cast to torch\.bfloat16"):
        linear(torch.randn(1, 64))
