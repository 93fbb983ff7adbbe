"""The attention of a prompt by one kernel is a plain softmax over [audio | text]; what it is told says what a mask would."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pal_audio.integration.prompt_attention import PromptAudio, PromptStep, PromptText
from tests.kernels import kernel_module
from tests.model.test_decoding import QUESTIONS, mixed_batch
from tests.model.test_invariants import CLIPS
from tests.model.test_mixed import MIXES, mixed
from tests.tiny import batch, message, tiny_model

LAL_MIXES = [name for name, streams in MIXES.items() if any(one["integration"]["type"] == "lal" for one in streams)]
NOT_SEEN = torch.iinfo(torch.int32).max


def plain_attention(query: torch.Tensor, text: PromptText, audio: PromptAudio, scale: float) -> torch.Tensor:
    """`prompt_kernel.prompt_attention` in float32, with joined and repeated keys under a mask."""
    rows, heads, length, _ = query.shape
    turned = audio.keys.float()
    if audio.tables is not None:
        cos, sin = (table.float()[:, None] for table in audio.tables)
        one, two = turned.chunk(2, dim=-1)
        turned = (turned * cos + torch.cat([-two, one], dim=-1) * sin).to(audio.keys.dtype).float()
    groups = heads // text.keys.shape[1]

    def of_heads(*parts: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.float().expand(rows, -1, -1, -1) for part in parts], dim=2).repeat_interleave(groups, 1)

    at = torch.arange(length, device=query.device)
    behind = at[:, None] - at
    sees = (behind >= 0) & (behind < (length if text.window is None else text.window))
    seen = torch.ones_like(audio.positions_BL, dtype=torch.bool) if text.seen_BL is None else text.seen_BL
    sees = (sees & seen[:, None]) | (behind == 0)
    hears = audio.positions_BL[:, :, None] > audio.after_BA[:, None]
    scores = query.float() @ of_heads(turned, text.keys).transpose(-1, -2) * scale
    weights = scores.masked_fill(~torch.cat([hears, sees], dim=-1)[:, None], -torch.inf).softmax(-1)
    return (weights @ of_heads(audio.values, text.values)).transpose(1, 2).to(text.values.dtype)


@pytest.fixture
def kernel() -> Any:
    return kernel_module("prompt_kernel")


@dataclass(frozen=True)
class Shape:
    """A prompt of `rows`; `held` sets of audio keys; `padding` of rows is on the "left", "right", or there is none ("")."""

    length: int
    audio: int
    size: int = 64
    heads: int = 4
    key_heads: int = 2
    rows: int = 2
    held: int = 2
    padding: str = ""
    window: int | None = None
    rotated: bool = True


SHAPES = [
    Shape(1, 1, rows=1, held=1),
    Shape(1, 65, heads=8, rotated=False),
    Shape(5, 63, size=32),
    Shape(5, 300, size=128, rotated=False),
    Shape(24, 64, heads=2, padding="left"),
    Shape(24, 65, size=32, padding="right", rotated=False),
    Shape(64, 65, held=1, rotated=False),
    Shape(64, 300, heads=6, size=32, rows=3, held=1, padding="left"),
    Shape(64, 63, heads=2, window=7, padding="right"),
    Shape(130, 1, window=70),
    Shape(130, 64, size=128, heads=1, key_heads=1, rows=1, held=1, rotated=False),
    Shape(130, 300, heads=2, key_heads=1, padding="left", window=100, rotated=False),
]


def example(shape: Shape, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, PromptText, PromptAudio]:
    """Two clips a row, behind a third and a half of the text; in row 0 the last is shorter; row 1 hears at its end."""
    rows, length, num = shape.rows, shape.length, shape.audio
    seen = torch.ones(rows, length, dtype=torch.bool)
    if shape.padding:
        part = slice(0, length // 3) if shape.padding == "left" else slice(length - length // 3, length)
        seen[0, part] = False
    positions = (seen.cumsum(1) - 1).masked_fill(~seen, 0)
    after = torch.full((rows, num), length // 3)
    after[:, num // 2 :] = length // 2
    after[0, num - num // 5 :] = NOT_SEEN
    after[1:2] = length - 2
    angles = 6 * torch.rand(shape.held, num, shape.size // 2)
    tables = None if shape.rotated else tuple(t.repeat(1, 1, 2).to(device, dtype) for t in (angles.cos(), angles.sin()))

    def heads(rows: int, number: int, count: int) -> torch.Tensor:
        """As projections give them: heads of a token side by side."""
        return torch.randn(rows, count, number, shape.size).to(device, dtype).transpose(1, 2)

    query = heads(rows, shape.heads, length)
    text = [heads(rows, shape.key_heads, length) for _ in range(2)]
    audio = [heads(shape.held, shape.key_heads, num).contiguous() for _ in range(2)]
    positions, after = (tensor.to(device, torch.int32) for tensor in (positions, after))
    seen_BL = seen.to(device) if shape.padding else None
    heard = PromptAudio(*audio, positions, after, after.amin(1), tables)  # type: ignore[arg-type]
    return query, PromptText(*text, seen_BL, shape.window), heard


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_a_plain_softmax(kernel: Any, shape: Shape, split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "FULL_DEVICE", 10**6 if split else 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.bfloat16 if device == "cuda" else torch.float16  # the interpreter has no products in bfloat16
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (half, 2e-2)):
        query, text, audio = example(shape, dtype, device)
        output = kernel.prompt_attention(query, text, audio, 0.2)
        assert output.shape == (shape.rows, shape.length, shape.heads, shape.size)
        assert output.dtype == dtype
        torch.testing.assert_close(output, plain_attention(query, text, audio, 0.2), atol=tolerance, rtol=0)


def test_keys_are_shared_out_until_the_device_is_full(kernel: Any) -> None:
    assert kernel.piece_length(16 * 8 * 4, 1564) is None
    for num_blocks, num_keys in ((32, 1564), (4, 90_064), (1, 65), (128, 1564)):
        piece = kernel.piece_length(num_blocks, num_keys)
        assert piece % kernel.KEYS_AT_ONCE == 0
        pieces = -(-num_keys // piece)
        assert num_blocks * (pieces - 1) <= kernel.FULL_DEVICE
        assert piece == kernel.KEYS_AT_ONCE or num_blocks * pieces > kernel.FULL_DEVICE / 2


def check_bounds(attached: Any) -> None:
    attached.begin(attached.placement.position_ids_BL)
    bounds = attached.bounds()
    assert attached.expected
    for layer in attached.expected:
        positions_BL, after_BA, least_B = bounds[attached.streams_of_layer[layer]]
        assert torch.equal((positions_BL[:, :, None] > after_BA[:, None])[:, None], attached.visible(layer))
        assert torch.equal(least_B, after_BA.min(1).values)


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("arm", ["lal", "pal", *LAL_MIXES])
def test_bounds_say_what_the_mask_of_audio_says(arm: str, positions: str) -> None:
    """No, one and two clips a row, of several lengths and streams; and a clip that all rows share."""
    model, processor = mixed(arm, positions=positions) if arm in MIXES else tiny_model("llama", arm, positions=positions)
    inputs = mixed_batch(processor)
    check_bounds(model.attach(model.encode_audio(**_sound(inputs)), inputs["input_ids"], inputs["attention_mask"]))
    one = batch(processor, [message(CLIPS[1])])
    rows = batch(processor, [message(CLIPS[1], question=question) for question in QUESTIONS])
    shared = model.encode_audio(**_sound(one)).share(len(QUESTIONS))
    check_bounds(model.attach(shared, rows["input_ids"], rows["attention_mask"]))


def _sound(inputs: Any) -> dict[str, Any]:
    return {name: inputs[name] for name in ("input_features", "audio_num_samples")}


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("padding", ["", "left", "right"])
def test_a_text_is_told_as_its_mask_tells_it(padding: str, window: int | None) -> None:
    query, text, audio = example(Shape(12, 8, size=8, padding=padding, window=window), torch.float32, "cpu")
    is_full = text.seen_BL is None
    step = PromptStep((window,), torch.ones(2, 12, dtype=torch.bool) if text.seen_BL is None else text.seen_BL, is_full, None)
    step.begin()
    mask = step._masks[window]
    mask = torch.ones(12, 12, dtype=torch.bool).tril() if mask is None else mask
    audio.after_BA.fill_(NOT_SEEN)
    keys, values = (side.repeat_interleave(2, 1) for side in (text.keys, text.values))
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.2)
    torch.testing.assert_close(plain_attention(query, text, audio, 0.2), expected.transpose(1, 2))
