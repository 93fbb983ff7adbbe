"""Attention of training steps by a kernel is a plain softmax over [audio | text], forward and backward, and SDPA under a mask.

How a model comes to the kernel is tested with a plain one in its place, on any machine; the kernel itself on a GPU, or in
Triton's interpreter.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.integration import recompute, training_attention
from pal_audio.integration.prompt_attention import PromptAudio, PromptText
from pal_audio.integration.training_attention import StepKernel, find_kernel, why_not
from pal_audio.model import modeling
from tests.integration.test_prompt_kernel import LAL_MIXES
from tests.integration.test_prompt_kernel import plain_attention as attention_of_a_prompt
from tests.kernels import kernel_module
from tests.model.test_invariants import CLIPS
from tests.model.test_mixed import MIXES, mixed
from tests.model.test_packing import ANSWER, CONVERSATIONS, training_batch
from tests.tiny import batch, message, tiny_model

NOT_SEEN = torch.iinfo(torch.int32).max
NAMES = ("output", "query", "text keys", "text values", "audio keys", "audio values")
HEADS_OF_16 = {"head_dim": 16}


def plain_attention(query: Any, text: Any, audio: Any, bounds: Any, window: int | None, scale: float) -> torch.Tensor:
    """`training_kernel.training_attention` for all rows without padding: what a prompt's kernel is compared with."""
    positions_BL, after_BA, least_B = bounds
    hears = positions_BL[:, :, None] > after_BA[:, None]
    assert not (hears & (positions_BL <= least_B[:, None])[:, :, None]).any(), "the least of `after` says so too"
    return attention_of_a_prompt(query, PromptText(*text, None, window), PromptAudio(*audio, *bounds), scale)


@pytest.fixture
def kernel() -> Any:
    return kernel_module("training_kernel")


@dataclass(frozen=True)
class Shape:
    """Rows of two clips: row 0's last ends early, row 1 has no audio, row 2 hears at its end; padding behind row 0's text."""

    length: int
    audio: int
    size: int = 16
    heads: int = 4
    key_heads: int = 2
    rows: int = 3
    padding: int = 0
    window: int | None = None


SHAPES = [
    Shape(2, 1, rows=1),
    Shape(9, 0, heads=2),
    Shape(16, 32, heads=2, padding=5),
    Shape(21, 37, padding=4),
    Shape(21, 37, heads=4, key_heads=1, window=5),
    Shape(37, 20, heads=6, size=32, window=20, padding=17),
    Shape(37, 70, heads=2, key_heads=2, rows=2),
    Shape(8, 150, size=64, rows=2),
]


def example(shape: Shape, dtype: torch.dtype, device: str) -> tuple[list[torch.Tensor], Any, torch.Tensor]:
    """Queries, keys and values of text, of audio; bounds; and the gradient of the output, which padding has none of."""
    rows, length, num = shape.rows, shape.length, shape.audio
    positions = torch.arange(length).repeat(rows, 1)
    gradient = torch.randn(rows, length, shape.heads, shape.size)
    if shape.padding:
        positions[0, -shape.padding :], gradient[0, -shape.padding :] = 0, 0
    after = torch.full((rows, num), length // 3)
    after[:, num // 2 :] = length // 2
    after[0, num - num // 5 :] = NOT_SEEN
    after[1:2] = NOT_SEEN
    after[2:3] = length - 2
    least = after.amin(1) if num else torch.full((rows,), NOT_SEEN)

    def heads(number: int, count: int) -> torch.Tensor:
        """As projections give them: heads of a token side by side."""
        return torch.randn(rows, count, number, shape.size).to(device, dtype).transpose(1, 2).requires_grad_()

    inputs = [heads(shape.heads, length), *(heads(shape.key_heads, count) for count in (length, length, num, num))]
    return inputs, tuple(t.to(device, torch.int32) for t in (positions, after, least)), gradient.to(device, dtype)


def differentiated(attend: Any, inputs: list[torch.Tensor], bounds: Any, gradient: torch.Tensor, window: int | None) -> Any:
    """The output and all five gradients."""
    query, *sides = inputs
    output = attend(query, (sides[0], sides[1]), (sides[2], sides[3]), bounds, window, 0.3)
    return output, *torch.autograd.grad(output, inputs, gradient)


@pytest.mark.parametrize("blocks", [(16, 16), (32, 16), (16, 32)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_a_plain_softmax(kernel: Any, shape: Shape, blocks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.bfloat16 if device == "cuda" else torch.float16  # the interpreter has no products in bfloat16
    for name in ("FORWARD", "TO_QUERIES", "TO_KEYS"):
        monkeypatch.setattr(kernel, name, {256: kernel.Blocks(*blocks, 4, 2)})
    monkeypatch.setattr(kernel, "IN_FLOAT32", kernel.Blocks(*blocks, 4, 1))
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (half, 4e-2 if half is torch.bfloat16 else 1e-2)):
        inputs, bounds, gradient = example(shape, dtype, device)
        found = differentiated(kernel.training_attention, inputs, bounds, gradient, shape.window)
        wide = [heads.detach().float().requires_grad_() for heads in inputs]
        expected = differentiated(plain_attention, wide, bounds, gradient.float(), shape.window)
        for name, one, other in zip(NAMES, found, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(
                one.float(), other, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )
        for one, heads in zip(found[1:], inputs, strict=True):
            assert not heads.numel() or one.stride() == heads.stride(), "the next product finds it as this one left it"


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_every_head_size_has_its_blocks(kernel: Any, size: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    inputs, bounds, gradient = example(Shape(7, 20, size=size, rows=1), torch.float16, device)
    found = differentiated(kernel.training_attention, inputs, bounds, gradient, None)
    expected = differentiated(
        plain_attention, [heads.detach().float().requires_grad_() for heads in inputs], bounds, gradient, None
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, atol=1e-2, rtol=1e-2)


def test_tensors_may_lie_otherwise(kernel: Any) -> None:
    """Contiguous heads, keys and values that are parts of one product, a gradient that is one number expanded."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    inputs, bounds, gradient = example(Shape(9, 20), torch.float32, device)
    wide = torch.cat([heads.detach().transpose(1, 2) for heads in inputs[3:]], dim=-1).transpose(1, 2)
    parts = [part.detach().requires_grad_() for part in wide.split(16, dim=-1)]
    across = inputs[0].detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    others = [across, *(heads.detach().contiguous().requires_grad_() for heads in inputs[1:3]), *parts]
    one = torch.ones((), device=device).expand_as(gradient)
    found = differentiated(kernel.training_attention, others, bounds, one, None)
    for ours, theirs in zip(found, differentiated(plain_attention, inputs, bounds, one, None), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_operators_are_what_a_compiler_expects(kernel: Any) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs, bounds, gradient = example(Shape(5, 9, heads=2, rows=2), torch.float32, device)
    torch.library.opcheck(torch.ops.pal_audio.training_attention.default, (*inputs, *bounds, 3, 0.3))
    output, sums = torch.ops.pal_audio.training_attention(*inputs, *bounds, 3, 0.3)
    known = [tensor.detach() for tensor in (gradient, *inputs, *bounds, output, sums)]
    torch.library.opcheck(torch.ops.pal_audio.training_attention_backward.default, (*known, 3, 0.3))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_it_is_one_operator_each_way(kernel: Any, dynamic: bool) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs, bounds, gradient = example(Shape(5, 9, heads=2, rows=2), torch.float32, device)
    compiled = torch.compile(kernel.training_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = differentiated(compiled, inputs, bounds, gradient, None)
    for one, other in zip(found, differentiated(kernel.training_attention, inputs, bounds, gradient, None), strict=True):
        assert torch.equal(one, other), "one order of sums"


# ---- how a model comes to it ----


def learnt(model: Any, inputs: Any, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs, use_cache=False, **options).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_same(found: Any, expected: Any) -> None:
    (loss, gradients), (expected_loss, expected_gradients) = found, expected
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Windows of the layers that attended by the plain kernel, which stands in for Triton's in every step under "triton"."""
    seen: list[int | None] = []

    def attend(query: Any, text: Any, audio: Any, bounds: Any, window: int | None, scale: float) -> torch.Tensor:
        seen.append(window)
        return plain_attention(query, text, audio, bounds, window, scale)

    def find(setting: str, device: torch.device) -> StepKernel | None:
        return StepKernel(attend, setting == "triton") if setting in ("auto", "triton") else None

    monkeypatch.setattr(modeling, "find_kernel", find)
    return seen


def tiny(family: str, arm: str, **options: Any) -> Any:
    """A tiny model with heads that the kernel takes, in training."""
    made = mixed(arm, family, **options) if arm in MIXES else tiny_model(family, arm, llm=HEADS_OF_16, **options)
    return made[0].train(), made[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("how", ["none", "light", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "smollm3"])
@pytest.mark.parametrize("arm", ["lal", "pal"])
def test_packed_steps_are_those_of_sdpa(calls: Any, arm: str, family: str, how: str, checkpointing: bool) -> None:
    """No, one and two clips a row, rows of several lengths, windows, and layers that are computed again."""
    model, processor = tiny(family, arm)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.recompute_audio = how
    inputs = training_batch(processor, CONVERSATIONS)
    results = []
    for model.audio_kernel in ("sdpa", "triton"):
        assert not calls
        results.append(learnt(model, inputs, packed=True))
    check_same(results[1], results[0])
    assert len(calls) >= 4
    assert set(calls) == {"llama": {None}, "gemma3_text": {6, None}, "mistral": {6}, "smollm3": {None}}[family]


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("arm", ["lal", "pal"])
def test_unpacked_rows_without_padding_need_no_mask(calls: Any, arm: str, positions: str) -> None:
    model, processor = tiny("llama", arm, positions=positions)
    inputs = training_batch(processor, [message(CLIPS[0]) + ANSWER, message(CLIPS[2]) + ANSWER])
    assert arm == "pal" or inputs["attention_mask"].all()
    del inputs["attention_mask"]
    inputs["input_ids"] = inputs["input_ids"].clone()
    results = []
    for model.audio_kernel in ("sdpa", "triton"):
        results.append(learnt(model, inputs))
    check_same(results[1], results[0])
    assert len(calls) == 4


def test_streams_side_by_side_are_heard_together(calls: Any) -> None:
    for arm in LAL_MIXES:
        model, processor = tiny("qwen3", arm)
        inputs = training_batch(processor, CONVERSATIONS)
        results = []
        for model.audio_kernel in ("sdpa", "triton"):
            results.append(learnt(model, inputs, packed=True))
        check_same(results[1], results[0])


def test_a_batch_without_sound_hears_nothing(calls: Any) -> None:
    model, processor = tiny("llama", "pal")
    inputs = training_batch(processor, [CONVERSATIONS[3], message(system=None) + ANSWER])
    results = []
    for model.audio_kernel in ("sdpa", "triton"):
        results.append(learnt(model, inputs, packed=True))
    check_same(results[1], results[0])
    assert len(calls) == 4
    assert any(name.startswith("streams") for name in results[1][1]), "its graph is whole"


def test_what_the_kernel_does_not_serve_goes_by_sdpa_or_is_an_error(calls: Any) -> None:
    model, processor = tiny("llama", "lal")
    padded = training_batch(processor, CONVERSATIONS)
    expected = learnt(model, padded)
    assert not calls, "a mask says what padding is"
    model.audio_kernel = "triton"
    with pytest.raises(PalError, match=r"layer 0 cannot attend by the kernel: text comes with a mask.*take 'auto'"):
        learnt(model, padded)
    check_same(learnt(model, padded, packed=True), expected)
    assert len(calls) == 4


def test_audio_of_all_rows_and_answers_go_by_sdpa(calls: Any) -> None:
    model, processor = tiny("llama", "lal")
    model.audio_kernel = "auto"
    one = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(one["input_features"], one["audio_num_samples"])
    rows = training_batch(processor, [message(CLIPS[1]) + ANSWER] * 2)
    text = {name: rows[name] for name in ("input_ids", "labels")}
    own = learnt(model, text | {"audio_memory": memory.concatenate([memory] * 2)})
    assert len(calls) == 4
    shared = learnt(model, text | {"audio_memory": memory.share(2)})
    assert len(calls) == 4
    check_same(shared, own)
    with torch.no_grad():
        model(**text, audio_memory=memory.concatenate([memory] * 2))
    model.eval().generate(**one, max_new_tokens=2)
    assert len(calls) == 4


def test_a_forward_without_gradients_between_leaves_the_kernel_to_what_is_recomputed(calls: Any) -> None:
    model, processor = tiny("llama", "lal")
    model.audio_kernel = "triton"
    model.gradient_checkpointing_enable()
    one = batch(processor, [message(CLIPS[1])])
    rows = training_batch(processor, [message(CLIPS[1]) + ANSWER])
    attached = model.attach(model.encode_audio(one["input_features"], one["audio_num_samples"]), rows["input_ids"])
    text = {name: rows[name] for name in ("input_ids", "labels")}
    loss = model(**text, audio_memory=attached, use_cache=False).loss
    with torch.no_grad():
        model(**text, audio_memory=attached, use_cache=False)
    loss.backward()
    num_layers = len(attached.expected)
    assert len(calls) == 2 * num_layers  # each layer once and once again, and none without gradients


def test_where_the_inner_kernel_is_eager_the_kernel_is_refused(calls: Any) -> None:
    model, processor = tiny("llama", "lal")
    model.set_attn_implementation("eager")
    rows = training_batch(processor, [message(CLIPS[1]) + ANSWER])
    model.audio_kernel = "triton"
    with pytest.raises(PalError, match="cannot attend by the kernel: the inner kernel is not SDPA"):
        model(**rows, use_cache=False)
    model.audio_kernel = "auto"
    model(**rows, use_cache=False)
    assert not calls


def test_what_keeps_a_layer_from_the_kernel_is_told() -> None:
    inputs, bounds, _ = example(Shape(5, 9), torch.float32, "cpu")
    query, *sides = inputs
    text, audio = (sides[0], sides[1]), (sides[2], sides[3])
    assert (
        why_not(query, text, audio, bounds, False, {"scaling": 1.0, "sliding_window": 4, "dropout": 0.0, "s_aux": None}) is None
    )
    assert "dropout" in why_not(query, text, audio, bounds, False, {"dropout": 0.1})
    assert "softcap" in why_not(query, text, audio, bounds, False, {"softcap": 2.0})
    assert "s_aux" in why_not(query, text, audio, bounds, False, {"s_aux": query})
    assert "mask" in why_not(query, text, audio, bounds, True, {})
    for last in (1, 2):  # a token, and a part of the text, behind a cache
        behind = (bounds[0][:, -last:], *bounds[1:])
        assert "whole prompt" in why_not(query[:, :, -last:], text, audio, behind, False, {})
    alone = (bounds[0][:, -1:], *bounds[1:])
    assert "whole prompt" in why_not(query[:, :, -1:], (text[0][:, :, -1:], text[1][:, :, -1:]), audio, alone, False, {})
    assert "whole prompt" in why_not(query, text, audio, alone, False, {})
    assert "all rows" in why_not(query, text, (audio[0][:1], audio[1][:1]), bounds, False, {})
    assert "float64" in why_not(
        *([side.double() for side in part] if part is text else part for part in (query, text)), audio, bounds, False, {}
    )
    narrow = [side[..., :8] for side in text]
    assert "heads of 8" in why_not(query[..., :8], (narrow[0], narrow[1]), audio, bounds, False, {})


def test_a_setting_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(PalError, match="audio_kernel: 'flash' is not one of auto, sdpa, triton"):
        find_kernel("flash", cpu)
    assert find_kernel("auto", cpu) is None
    assert find_kernel("sdpa", gpu) is None
    monkeypatch.setattr(training_attention, "HAS_TRITON", True)
    monkeypatch.setattr(training_attention, "IS_INTERPRETED", False)
    with pytest.raises(PalError, match=r"audio_kernel 'triton' .*on a GPU, but the model is on cpu"):
        find_kernel("triton", cpu)
    monkeypatch.setattr(training_attention, "HAS_TRITON", False)
    assert find_kernel("auto", gpu) is None
    with pytest.raises(PalError, match=r"audio_kernel 'triton' .*needs Triton, which is not installed"):
        find_kernel("triton", gpu)
    model, processor = tiny("llama", "lal")
    model.audio_kernel = "triton"
    with pytest.raises(PalError, match="needs Triton"):
        learnt(model, training_batch(processor, CONVERSATIONS), packed=True)


@pytest.mark.parametrize(("kilobytes", "has_room"), [(227, True), (163, True), (99, False), (None, False)])
def test_small_gpus_are_left_to_sdpa(kilobytes: int | None, has_room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {} if kilobytes is None else {"shared_memory_per_block_optin": 1024 * kilobytes}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**known))
    monkeypatch.setattr(training_attention, "HAS_TRITON", True)
    assert training_attention._has_room(torch.device("cuda")) is has_room
    if not has_room:
        assert find_kernel("auto", torch.device("cuda")) is None


@pytest.mark.parametrize("how", ["none", "light", "full"])
def test_a_step_by_the_kernel_is_that_of_sdpa(kernel: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And `light` does not compute it again."""
    model, processor = tiny("gemma3_text", "pal")
    if torch.cuda.is_available():
        model = model.cuda()
    model.recompute_audio = how
    inputs = training_batch(processor, CONVERSATIONS)
    launches: list[Any] = []
    cut = kernel._Heads._cut
    monkeypatch.setattr(kernel._Heads, "_cut", lambda heads, table: (launches.append(table), cut(heads, table))[1])
    results = []
    for model.audio_kernel in ("sdpa", "triton"):
        results.append(learnt(model, inputs, packed=True))
    check_same(results[1], results[0])
    again = {"none": 1, "light": 1, "full": 2}[how]
    assert [sum(table is one for table in launches) for one in (kernel.FORWARD, kernel.TO_QUERIES, kernel.TO_KEYS)] == [
        4 * again,
        4,
        4,
    ]
    assert torch.ops.pal_audio.training_attention.default in recompute.PRODUCTS
