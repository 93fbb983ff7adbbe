"""What every connector promises: lengths, batches, size, time, gradients. A new member joins by one row."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_audio import connectors
from pal_audio.connectors import Connector

FRAME_SIZE, TOKEN_SIZE, RATE_HZ = 12, 20, 25.0
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"type": "mlp"},
    "mlp-1": {"type": "mlp", "stride": 1, "time_code": False},
    "mlp-5": {"type": "mlp", "stride": 5, "hidden_size": 7},
    "pool": {"type": "pool", "num_tokens": 4},
    "pool-attention": {"type": "pool", "num_tokens": 4, "kind": "attention", "hidden_size": 7},
    "pool-rate": {"type": "pool", "tokens_per_s": 3.0},
    "pool-rate-attention": {"type": "pool", "tokens_per_s": 5.0, "kind": "attention", "time_code": False},
    "pool-fast": {"type": "pool", "tokens_per_s": 100.0},
    "qformer": {"type": "qformer", "queries": 3},
    "qformer-wide": {"type": "qformer", "queries": 5, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "time_code": False},
}
every_connector = pytest.mark.parametrize("name", CASES)


def built(name: str, **sizes: Any) -> Connector:
    torch.manual_seed(0)
    config = connectors.parse(CASES[name])
    return connectors.build(config, **({"frame_size": FRAME_SIZE, "token_size": TOKEN_SIZE, "frame_rate_hz": RATE_HZ} | sizes))


def frames_of(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames; what stands past a length is large, so that reading it shows."""
    frames_CTD = torch.randn(len(lengths), max(lengths), FRAME_SIZE)
    for clip, length in enumerate(lengths):
        frames_CTD[clip, length:] = 1e4
    return frames_CTD, torch.tensor(lengths)


@every_connector
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@torch.no_grad()
def test_batch_equals_single_and_lengths_are_the_real_shapes(name: str, lengths: list[int]) -> None:
    connector = built(name)
    frames_CTD, lengths_C = frames_of(lengths)
    tokens_CAD, token_lengths_C = connector(frames_CTD, lengths_C)
    assert token_lengths_C.dtype == torch.int64
    assert tokens_CAD.shape == (len(lengths), int(token_lengths_C.max()), TOKEN_SIZE)
    for clip, length in enumerate(lengths):
        num_tokens = connector.output_lengths(length)
        assert num_tokens == connector.config.output_lengths(length, RATE_HZ) == int(token_lengths_C[clip]) >= 1
        single_CAD, _ = connector(frames_CTD[clip : clip + 1, :length], lengths_C[clip : clip + 1])
        assert single_CAD.shape[1] == num_tokens
        torch.testing.assert_close(tokens_CAD[clip, :num_tokens], single_CAD[0], atol=1e-6, rtol=1e-6)
        assert (tokens_CAD[clip, num_tokens:] == 0).all()


@every_connector
def test_gradient_reaches_every_parameter_and_every_frame(name: str) -> None:
    connector = built(name)
    frames_CTD, lengths_C = frames_of([23, 7])
    frames_CTD.requires_grad_()
    tokens_CAD, _ = connector(frames_CTD, lengths_C)
    (tokens_CAD * torch.randn_like(tokens_CAD)).sum().backward()
    for key, value in connector.named_parameters():
        assert value.grad is not None, key
        assert torch.isfinite(value.grad).all(), key
        # A score's common offset leaves its softmax as it is, and so does a common offset of keys.
        assert value.grad.abs().sum() > 0 or key == "score.1.bias", key
    assert frames_CTD.grad is not None
    reached = frames_CTD.grad.abs().sum(-1) > 0
    assert reached[0].all()
    assert reached[1, :7].all()
    assert not reached[1, 7:].any()


@every_connector
@pytest.mark.parametrize("init_rms", [0.02, 1.0])
@torch.no_grad()
def test_tokens_start_at_the_size_asked_for(name: str, init_rms: float) -> None:
    tokens_CAD, _ = built(name, token_size=64, init_rms=init_rms)(*frames_of([40]))
    assert float(tokens_CAD.square().mean().sqrt()) == pytest.approx(init_rms, rel=0.05)


@every_connector
@torch.no_grad()
def test_half_precision_stays_near_full(name: str) -> None:
    connector = built(name)
    frames_CTD, lengths_C = frames_of([30, 11])
    full_CAD, _ = connector(frames_CTD, lengths_C)
    half_CAD, _ = connector.to(torch.bfloat16)(frames_CTD.bfloat16(), lengths_C)
    assert half_CAD.dtype == torch.bfloat16
    assert float((half_CAD.float() - full_CAD).abs().max()) < 0.15


@pytest.mark.parametrize("name", ["mlp", "mlp-5", "pool", "pool-rate"])
@torch.no_grad()
def test_tokens_are_local_and_in_time_order(name: str) -> None:
    """A change of one frame moves one token only, and later frames move no earlier token."""
    connector = built(name)
    frames_CTD, lengths_C = frames_of([25])
    before_CAD, _ = connector(frames_CTD, lengths_C)
    last = -1
    for frame in range(25):
        moved_CTD = frames_CTD.clone()
        moved_CTD[0, frame] += 1
        after_CAD, _ = connector(moved_CTD, lengths_C)
        (token,) = (after_CAD - before_CAD).abs().sum(-1)[0].nonzero()[:, 0].tolist()
        assert token in (last, last + 1)
        last = token
    assert last == before_CAD.shape[1] - 1


@pytest.mark.parametrize("name", ["mlp-5", "pool-rate-attention"])
@torch.no_grad()
def test_local_connectors_join_at_boundaries(name: str) -> None:
    """Without the time code, two parts one after another give what the whole gives: streams may append."""
    connector = built(name)
    if connector.config.time_code:
        connector = connectors.build(connector.config.model_copy(update={"time_code": False}), FRAME_SIZE, TOKEN_SIZE, RATE_HZ)
    frames_CTD, lengths_C = frames_of([40])
    whole_CAD, _ = connector(frames_CTD, lengths_C)
    parts = [connector(frames_CTD[:, part], torch.tensor([20]))[0] for part in (slice(0, 20), slice(20, 40))]
    torch.testing.assert_close(torch.cat(parts, 1), whole_CAD, atol=1e-6, rtol=1e-6)
