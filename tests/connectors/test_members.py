"""What is particular to one connector, and what a user may get wrong."""

from typing import Any

import pytest
import torch

from pal_audio import connectors
from pal_audio.errors import PalError


def test_mlp_lengths() -> None:
    config = connectors.parse({"type": "mlp", "stride": 4})
    assert [config.output_lengths(n, 25.0) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_pool_lengths() -> None:
    fixed = connectors.parse({"type": "pool", "num_tokens": 4})
    assert [fixed.output_lengths(n, 25.0) for n in (1, 3, 4, 5, 1000)] == [1, 3, 4, 4, 4]
    by_time = connectors.parse({"type": "pool", "tokens_per_s": 5.0})
    assert [by_time.output_lengths(n, 25.0) for n in (1, 5, 6, 25, 250)] == [1, 1, 2, 5, 50]
    assert by_time.output_lengths(30, 3.0) == 30


def test_qformer_length_is_the_number_of_queries() -> None:
    config = connectors.parse({"type": "qformer", "queries": 7})
    assert {config.output_lengths(n, 25.0) for n in (1, 7, 5000)} == {7}


@torch.no_grad()
def test_pool_takes_the_mean_of_its_segment() -> None:
    connector = connectors.build(connectors.parse({"type": "pool", "num_tokens": 3}), 4, 8, 25.0)
    seen = {}
    connector.projector.register_forward_pre_hook(lambda module, inputs: seen.update(means=inputs[0]))
    frames_CTD = torch.randn(2, 7, 4)
    connector(frames_CTD, torch.tensor([7, 2]))
    for token, (start, end) in enumerate([(0, 3), (3, 5), (5, 7)]):
        torch.testing.assert_close(seen["means"][0, token], frames_CTD[0, start:end].mean(0))
    torch.testing.assert_close(seen["means"][1, :2], frames_CTD[1, :2])


@torch.no_grad()
def test_attention_pooling_follows_its_score_and_stays_finite() -> None:
    connector = connectors.build(connectors.parse({"type": "pool", "num_tokens": 2, "kind": "attention"}), 4, 8, 25.0)
    connector.score[1].weight.copy_(torch.tensor([[500.0, 0, 0, 0]]))
    seen = {}
    connector.projector.register_forward_pre_hook(lambda module, inputs: seen.update(means=inputs[0]))
    frames_CTD = torch.randn(1, 10, 4)
    frames_CTD[0, 2, 0] = frames_CTD[0, 9, 0] = 50
    connector(frames_CTD, torch.tensor([10]))
    torch.testing.assert_close(seen["means"][0], frames_CTD[0, [2, 9]])


@torch.no_grad()
def test_qformer_reads_the_whole_clip_and_its_order() -> None:
    connector = connectors.build(connectors.parse({"type": "qformer", "queries": 2}), 8, 16, 25.0)
    frames_CTD, lengths_C = torch.randn(1, 30, 8), torch.tensor([30])
    tokens_CAD, _ = connector(frames_CTD, lengths_C)
    assert not torch.allclose(connector(frames_CTD.flip(1), lengths_C)[0], tokens_CAD, atol=1e-4)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"type": "mlp", "strid": 2}, "unknown key 'strid'; did you mean 'stride'"),
    ({"type": "mlp", "stride": 0}, "stride"),
    ({"type": "pool"}, "one of num_tokens and tokens_per_s"),
    ({"type": "pool", "num_tokens": 2, "tokens_per_s": 1}, "one of num_tokens and tokens_per_s"),
    ({"type": "qformer", "queries": 0}, "queries"),
    ({"type": "mlpp"}, "mlpp"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message[:24] for _, message in WRONG])
def test_mistakes_are_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PalError, match=message) as caught:
        connectors.parse(values)
    assert "\n" not in str(caught.value)


def test_qformer_heads_must_divide_its_width() -> None:
    with pytest.raises(PalError, match="hidden_size 10 is no multiple of num_heads 4"):
        connectors.build(connectors.parse({"type": "qformer", "num_heads": 4}), 10, 16, 25.0)
