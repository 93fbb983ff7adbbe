"""A token knows its absolute time in seconds."""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pal_audio import connectors
from pal_audio.connectors import TokenHead, time_code


def test_planted_values() -> None:
    """Five periods in geometric steps: 0.1, 1.778, 31.6, 562.3 and 10,000 s."""
    periods_s = [0.1 * 10 ** (5 * i / 4) for i in range(5)]
    for time_s in (0.0, 0.025, 1.0, 59.99, 3600.0):
        expected = [math.sin(2 * math.pi * time_s / period) for period in periods_s]
        expected += [math.cos(2 * math.pi * time_s / period) for period in periods_s]
        code = time_code(torch.tensor([time_s]), 10)[0]
        torch.testing.assert_close(code, torch.tensor(expected), atol=0.03 if time_s > 60 else 2e-3, rtol=0)
    assert time_code(torch.tensor([0.025]), 10)[0, 0] == pytest.approx(1.0)
    assert time_code(torch.zeros(2, 3), 7).shape == (2, 3, 7)


def test_window_1_and_window_900_differ() -> None:
    """30 s windows, 8 hours apart from end to end: no two codes are alike, neighbours least of all far ones."""
    times = 30.0 * torch.arange(960, dtype=torch.float32)
    code = time_code(times, 64)
    distance = torch.cdist(code, code) + 10 * torch.eye(len(code))
    assert float(distance[1, 900]) > 0.5
    assert float(distance.min()) > 0.05


def test_always_float32() -> None:
    times = torch.tensor([900.0, 900.5])
    exact = time_code(times, 16)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(time_code(times, 16), exact)
    head = TokenHead(16, init_rms=1.0, time_code=True).to(torch.bfloat16)
    tokens = torch.ones(1, 2, 16, dtype=torch.bfloat16)
    out = head(tokens, torch.ones(1, 2, dtype=torch.bool), times[None])
    # bfloat16 rounds 900.5 to 900: had the time been rounded too, both tokens would be the same.
    assert not torch.equal(out[0, 0], out[0, 1])


@pytest.mark.parametrize(
    ("values", "expected_s"),
    [
        ({"type": "mlp", "stride": 4}, [0.08, 0.24, 0.4]),
        ({"type": "pool", "tokens_per_s": 5.0}, [0.1, 0.3]),
        ({"type": "pool", "num_tokens": 5}, [0.04, 0.12, 0.2, 0.28, 0.36]),
        ({"type": "pool", "num_tokens": 99}, [0.02 + 0.04 * frame for frame in range(10)]),
    ],
)
def test_a_token_s_time_is_the_middle_of_what_it_stands_for(values: dict, expected_s: list[float]) -> None:
    connector = connectors.build(connectors.parse(values), 8, 32, 25.0)
    seen = {}
    connector.head.register_forward_pre_hook(lambda module, inputs: seen.update(times=inputs[2]))
    connector(torch.randn(1, 10, 8), torch.tensor([10]))
    torch.testing.assert_close(seen["times"][0], torch.tensor(expected_s), atol=1e-6, rtol=0)


@pytest.mark.parametrize("values", [{"type": "mlp"}, {"type": "pool", "num_tokens": 8}, {"type": "qformer", "queries": 2}])
@torch.no_grad()
def test_swapping_windows_is_heard_only_with_the_time_code(values: dict) -> None:
    """The same frames in another order: with the code the set of tokens changes, without it it does not."""
    first, second = torch.randn(2, 1, 20, 8)
    lengths_C = torch.tensor([40])
    for with_code in (True, False):
        torch.manual_seed(0)
        connector = connectors.build(connectors.parse(values | {"time_code": with_code}), 8, 32, 25.0)
        totals = [connector(torch.cat(order, 1), lengths_C)[0].square().sum(1) for order in ((first, second), (second, first))]
        assert torch.allclose(totals[0], totals[1], rtol=1e-4) != with_code


def test_a_compiler_sees_one_operator_and_the_mlp_asks_for_each_time_once() -> None:
    """On a GPU the sines of 64 equal clips took 2.6 ms of a step, made anew for each of them."""
    connector = connectors.build(connectors.parse({"type": "mlp", "stride": 2}), 8, 32, 50.0)
    frames, lengths = torch.randn(3, 10, 8), torch.tensor([10, 10, 10])
    graph = make_fx(lambda frames_CTD: connector(frames_CTD, lengths)[0])(frames).graph
    codes = [node for node in graph.nodes if node.target is torch.ops.pal_audio.time_code.default]
    assert [tuple(node.meta["val"].shape) for node in codes] == [(1, 5, 32)]
    assert not [node for node in graph.nodes if "sin" in str(node.target) or "cos" in str(node.target)]


def test_compiled_it_is_the_same() -> None:
    head = TokenHead(7, init_rms=1.0, time_code=True)
    inputs = torch.randn(2, 3, 7), torch.ones(2, 3, dtype=torch.bool), torch.rand(1, 3)
    expected = head(*inputs)
    expected.sum().backward()
    gradient = head.time_gain.grad.clone()
    head.zero_grad()
    got = torch.compile(head, fullgraph=True, backend="aot_eager")(*inputs)
    got.sum().backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(head.time_gain.grad, gradient)
