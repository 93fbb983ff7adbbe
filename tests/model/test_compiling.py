"""What `compiling.enable` compiles of a model: connectors to their last layer."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from pal_audio.model import compiling
from tests.tiny import tiny_model

LAYERS = {nn.Linear: "linear", nn.LayerNorm: "layer_norm", nn.GELU: "gelu"}


def count_compiled(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Counter[str]:
    """Functions by name in all that `torch.compile` makes from here on; what it makes computes as before."""
    compiled: Counter[str] = Counter()

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.update(getattr(node.target, "__name__", "") for node in graph.graph.nodes)
        return graph.forward

    real = partial(torch.compile, backend=backend, **options)
    monkeypatch.setattr(torch, "compile", lambda *given, **_: real(*given))
    return compiled


@pytest.mark.parametrize(("arm", "options"), [("plits", {}), ("lal", {}), ("pal", {}), ("pal", {"summary": {"type": "qformer"}})])
def test_no_layer_of_a_connector_is_left_out(arm: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile` of torch's own containers compiles nothing: what is in them ran eagerly."""
    compiled = count_compiled(monkeypatch)
    model, _ = tiny_model("llama", arm, **options)
    connectors: list[Any] = [stream.connector for stream in model.streams]
    inputs = [(torch.randn(2, 9, connector.frame_size), torch.tensor([9, 4])) for connector in connectors]
    called: Counter[str] = Counter()
    for module in (module for connector in connectors for module in connector.modules()):
        if name := LAYERS.get(type(module)):
            module.register_forward_hook(lambda *_, name=name: called.update([name]))
    expected = [connector(*given)[0] for connector, given in zip(connectors, inputs, strict=True)]
    for module in (module for connector in connectors for module in connector.modules()):
        module._forward_hooks.clear()
    assert called.total() > 3
    compiling.enable(model)
    try:
        found = [connector(*given)[0] for connector, given in zip(connectors, inputs, strict=True)]
    finally:
        compiling.disable(model)
    assert {name: compiled[name] for name in called} == called
    torch.testing.assert_close(found, expected)
    compiled.clear()
    for connector, given in zip(connectors, inputs, strict=True):
        connector(*given)
    assert not compiled, "undone"


def test_many_parts_of_many_shapes_are_compiled_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch stops at the eighth variant of one code: twelve parts of three shapes must not have one in common."""
    compiled = count_compiled(monkeypatch, dynamic=False)
    parts = [nn.Sequential(nn.Linear(4, 4 + number)) for number in range(12)]
    for part in parts:
        compiling._compile(part, None)
    for rows in (2, 3, 4):
        for part in parts:
            part(torch.randn(rows, 4))
    assert compiled["linear"] == 3 * len(parts)


def test_enabled_twice_it_is_undone_at_once() -> None:
    model, _ = tiny_model("llama", "lal")
    plain = model.language_model.loss_function
    compiling.enable(model)
    compiling.enable(model)
    compiling.disable(model)
    assert model.language_model.loss_function is plain


@pytest.mark.parametrize(
    ("mode", "of_parts"),
    [(None, None), ("default", "default"), ("reduce-overhead", None), ("max-autotune", "max-autotune-no-cudagraphs")],
)
def test_graphs_are_of_the_layers_alone(mode: str | None, of_parts: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph copies what it reads from outside, and connectors and loss read what is as large as clips and logits."""
    modes: dict[str, list[str | None]] = {"layers": [], "parts": []}
    model, _ = tiny_model("llama", "pal", summary={"type": "qformer"})
    decoder = model.get_decoder()

    def watched(function: Any, mode: str | None = None, **_: Any) -> Any:
        modes["layers" if getattr(function, "__self__", None) is decoder else "parts"].append(mode)
        return function

    monkeypatch.setattr(torch, "compile", watched)
    compiling.enable(model, mode)
    compiling.disable(model)
    assert modes["layers"] == [mode]
    assert len(modes["parts"]) > 5
    assert set(modes["parts"]) == {of_parts}


def test_frames_get_their_time_in_the_part_that_projects_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Added outside, the sum over all frames ran eagerly, forward and backward, and was copied into the next part's graph."""
    compiled = count_compiled(monkeypatch)
    model, _ = tiny_model("llama", "plits", connector={"type": "qformer"})
    (stream,) = model.streams
    compiling.enable(model)
    try:
        stream.connector(torch.randn(2, 9, stream.connector.frame_size), torch.tensor([9, 4]))
    finally:
        compiling.disable(model)
    assert compiled["time_code.default"] == 1
