"""Connectors that read several encoders: lengths, batches, masks, time and order of each, and a plain second implementation."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_audio import connectors
from pal_audio.connectors import JointConnector, time_code
from pal_audio.errors import PalError

FRAME_SIZES, TOKEN_SIZE, RATES_HZ = (12, 8), 20, (6.4, 50.0)
CASES: dict[str, dict[str, Any]] = {
    "lfst": {"type": "lfst", "queries": 3},
    "lfst-wide": {"type": "lfst", "queries": 5, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "time_code": False},
}
every_connector = pytest.mark.parametrize("name", CASES)
pairs = st.tuples(st.integers(1, 20), st.integers(1, 60))


def built(name: str, token_size: int = TOKEN_SIZE, init_rms: float = 1.0, **changes: Any) -> JointConnector:
    torch.manual_seed(0)
    return connectors.parse(CASES[name] | changes).build(FRAME_SIZES, token_size, RATES_HZ, init_rms)


def frames_of(lengths: list[tuple[int, int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Random frames of both encoders; what stands past a length is no number, so that reading it shows."""
    frames, lengths_EC = [], [torch.tensor(of_clips) for of_clips in zip(*lengths, strict=True)]
    for lengths_C, size in zip(lengths_EC, FRAME_SIZES, strict=True):
        frames_CTD = torch.randn(len(lengths), int(lengths_C.max()), size)
        for clip, length in enumerate(lengths_C.tolist()):
            frames_CTD[clip, length:] = torch.nan
        frames.append(frames_CTD)
    return frames, lengths_EC


@every_connector
@given(lengths=st.lists(pairs, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@torch.no_grad()
def test_batch_equals_single_and_lengths_are_the_real_shapes(name: str, lengths: list[tuple[int, int]]) -> None:
    connector = built(name)
    frames, lengths_EC = frames_of(lengths)
    tokens_CAD, token_lengths_C = connector(frames, lengths_EC)
    assert token_lengths_C.dtype == torch.int64
    assert tokens_CAD.shape == (len(lengths), int(token_lengths_C.max()), TOKEN_SIZE)
    for clip, of_clip in enumerate(lengths):
        num_tokens = connector.output_lengths(of_clip)
        assert num_tokens == connector.config.output_lengths(of_clip, RATES_HZ) == int(token_lengths_C[clip]) >= 1
        alone = [frames_CTD[clip : clip + 1, :length] for frames_CTD, length in zip(frames, of_clip, strict=True)]
        single_CAD, _ = connector(alone, [lengths_C[clip : clip + 1] for lengths_C in lengths_EC])
        torch.testing.assert_close(tokens_CAD[clip, :num_tokens], single_CAD[0], atol=1e-6, rtol=1e-5)


@every_connector
def test_gradient_reaches_every_parameter_and_every_frame_of_both_encoders(name: str) -> None:
    connector, lengths = built(name), [(5, 23), (7, 4)]
    frames, lengths_EC = frames_of(lengths)
    for frames_CTD in frames:
        frames_CTD.requires_grad_()
    tokens_CAD, _ = connector(frames, lengths_EC)
    (tokens_CAD * torch.randn_like(tokens_CAD)).sum().backward()
    for key, value in connector.named_parameters():
        assert value.grad is not None, key
        assert value.grad.abs().sum() > 0, key
    for encoder, frames_CTD in enumerate(frames):
        reached_CT = frames_CTD.grad.abs().sum(-1) > 0
        for clip, of_clip in enumerate(lengths):
            assert reached_CT[clip, : of_clip[encoder]].all()
            assert not reached_CT[clip, of_clip[encoder] :].any()


@every_connector
@pytest.mark.parametrize("init_rms", [0.02, 1.0])
@torch.no_grad()
def test_tokens_start_at_the_size_asked_for(name: str, init_rms: float) -> None:
    tokens_CAD, _ = built(name, token_size=64, init_rms=init_rms)(*frames_of([(6, 40)]))
    assert float(tokens_CAD.square().mean().sqrt()) == pytest.approx(init_rms, rel=0.05)


@every_connector
@torch.no_grad()
def test_half_precision_stays_near_full(name: str) -> None:
    connector = built(name)
    frames, lengths_EC = frames_of([(6, 30), (2, 11)])
    full_CAD, _ = connector(frames, lengths_EC)
    half_CAD, _ = connector.to(torch.bfloat16)([item.bfloat16() for item in frames], lengths_EC)
    assert half_CAD.dtype == torch.bfloat16
    assert float((half_CAD.float() - full_CAD).abs().max()) < 0.15


@pytest.mark.parametrize("encoder", [0, 1])
@torch.no_grad()
def test_order_of_each_encoder_is_heard_only_with_the_time_code(encoder: int) -> None:
    frames, lengths_EC = frames_of([(7, 30)])
    turned = [item.flip(1) if number == encoder else item for number, item in enumerate(frames)]
    for with_code in (True, False):
        connector = built("lfst", time_code=with_code)
        straight_CAD, turned_CAD = (connector(item, lengths_EC)[0] for item in (frames, turned))
        assert torch.allclose(straight_CAD, turned_CAD, atol=1e-4) != with_code


def plain_lfst(connector: Any, frames: list[torch.Tensor]) -> torch.Tensor:
    """Tokens (A, D) of one clip, query by query, head by head, over the connector's weights; frames (T, D) of each encoder."""
    memories = []
    for number, frames_TD in enumerate(frames):
        projection = connector.frame_projections[number]
        memory_TD = _norm(projection[1](_norm(frames_TD, projection[0])), projection[2])
        times = torch.tensor([(t + 0.5) / RATES_HZ[number] for t in range(len(frames_TD))])
        gain = connector.time_gains[number] if connector.config.time_code else 0.0
        memories.append(memory_TD + gain * time_code(times, memory_TD.shape[-1]))
    rows = list(connector.queries)
    for layer in connector.layers:
        for attention, mlp, memory_TD in zip(layer.cross_attentions, layer.mlps, memories, strict=True):
            rows = [_reading(attention, mlp, row, memory_TD) for row in rows]
    tokens = torch.stack([connector.out(_norm(row, connector.norm)) for row in rows])
    return tokens / tokens.square().mean(-1, keepdim=True).sqrt() * connector.head.scale


def _reading(attention: Any, mlp: Any, row: torch.Tensor, memory_TD: torch.Tensor) -> torch.Tensor:
    size, heads = len(row), attention.num_heads
    query = attention.q_proj(_norm(row, attention.norm))
    both = attention.kv_proj(memory_TD)
    mixed = []
    for head in range(heads):
        part = slice(head * size // heads, (head + 1) * size // heads)
        scores = torch.exp(both[:, :size][:, part] @ query[part] / math.sqrt(size // heads))
        mixed.append((scores / scores.sum()) @ both[:, size:][:, part])
    row = row + attention.out_proj(torch.cat(mixed))
    inner = mlp[1](_norm(row, mlp[0]))
    return row + mlp[3](inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))


def _norm(rows: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * norm.weight + norm.bias


@every_connector
@torch.no_grad()
def test_equals_a_plain_second_implementation(name: str) -> None:
    """The order of reading included: first encoder, feed-forward, second encoder, feed-forward, in every layer."""
    connector = built(name)
    for parameter in connector.parameters():
        if parameter.ndim <= 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
    frames, lengths_EC = frames_of([(5, 23)])
    tokens_CAD, _ = connector(frames, lengths_EC)
    torch.testing.assert_close(tokens_CAD[0], plain_lfst(connector, [item[0] for item in frames]), atol=1e-5, rtol=1e-4)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(PalError, match="lfst: hidden_size 12 is no multiple of num_heads 5"):
        built("lfst", num_heads=5)
