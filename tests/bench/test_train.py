"""The parts of a measured training step."""

from typing import Any

import pytest
import torch
from torch import nn

from pal_audio.bench.case import Case, Setup
from pal_audio.bench.train import adamw


def test_the_compiled_optimizer_makes_the_fused_ones_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing without generated kernels: those are compared on a GPU."""
    made: list[Any] = []
    original = torch.compile

    def compiled(function: Any, **options: Any) -> Any:
        made.append(function)
        return original(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compiled)
    weights: dict[str, list[torch.Tensor]] = {}
    for how in ("fused", "compiled"):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
        case = Case(setup=Setup(llm="tiny-llama", encoder="tiny-frames", optimizer=how), integration="lal")  # type: ignore[arg-type]
        optimizer, update = adamw(case, parameters, torch.device("cpu"))
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            update()
            optimizer.zero_grad(set_to_none=True)
        weights[how] = [parameter.detach() for parameter in parameters]
    assert len(made) == 1
    for one, other in zip(weights["fused"], weights["compiled"], strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(0)
    assert not torch.equal(weights["fused"][0], torch.randn(3, 4))
