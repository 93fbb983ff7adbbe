"""`torch.compile` of what a training step spends its time in: the LLM's layers, the connectors and the loss.

Lengths and places of clips stay outside: they are numbers on the CPU, of which a compiled function would make a new variant for
each value.

LAL layers then project audio for `PROJECTIONS_AT_ONCE` of them, half as many of the last ones, by one product, made when the
first of them asks and within the same graph: their gradients are written where its backward reads them. Where that costs less
the product makes keys and values at once (`integration.unprojected`). In a graph of a layer alone, such as another's activation
checkpointing recomputes, the others' could not be found. And a tied embedding makes no gradient of its own (`tied_embedding`).
"""

from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

PROJECTIONS_AT_ONCE = 4
_WITHOUT_GRAPHS = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}


def enable(model: Any, mode: str | None = None) -> None:
    """Compile a model's parts in place; its weights, names and results to rounding are as before.

    Hooks of these parts have to be there before: torch does not look for them once a part is compiled.

    Args:
        model: a `PalForConditionalGeneration`, or what has an LLM alone.
        mode: of `torch.compile`. CUDA graphs, where it asks for them, are of the LLM's layers alone: a graph copies what it
            reads from outside, and what connectors and loss read is as large as clips and logits.
    """
    disable(model)
    decoder = model.get_decoder()
    decoder.compile(mode=mode)
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is not None:  # outside, so that tables are made once and not anew, sine by sine, in the kernels of every layer
        rotary.forward = torch.compiler.disable(rotary.forward)
    other = None if mode is None else _WITHOUT_GRAPHS.get(mode, mode)
    for part in _connector_parts(model):
        _compile(part, other)
    llm = model.language_model
    llm.loss_function = _Loss(llm.loss_function, other)
    if hasattr(model, "projections_at_once"):
        model.projections_at_once, model.adds_tied_gradient = PROJECTIONS_AT_ONCE, True


def disable(model: Any) -> None:
    """Undo `enable`."""
    decoder = model.get_decoder()
    for part in (decoder, *_connector_parts(model)):
        part._compiled_call_impl = None
    if getattr(decoder, "rotary_emb", None) is not None:
        vars(decoder.rotary_emb).pop("forward", None)
    llm = model.language_model
    if isinstance(llm.loss_function, _Loss):
        llm.loss_function = llm.loss_function.plain
    if hasattr(model, "projections_at_once"):
        model.projections_at_once, model.adds_tied_gradient = 1, False


def _connector_parts(model: Any) -> Iterator[nn.Module]:
    """The modules of connectors whose inputs are tensors alone: what stands inside a connector."""
    for stream in getattr(model, "streams", ()):
        yield from _callable(stream.connector)


def _compile(part: nn.Module, mode: str | None) -> None:
    """Compile a part in place. `part.compile` of torch's own classes compiles nothing, as frames of theirs are passed over.

    Torch counts by code what it compiles, and stops at the eighth: so a method with its own code calls the part.
    """
    code = _call.__code__.replace(co_name=f"{type(part).__name__}_{id(part)}")
    part._compiled_call_impl = torch.compile(MethodType(FunctionType(code, globals()), part), mode=mode)


def _call(part: Any, *inputs: Any, **options: Any) -> Any:
    return part._call_impl(*inputs, **options)


def _callable(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        if isinstance(part, nn.ModuleList):
            yield from _callable(part)
        else:
            yield part


class _Loss:
    """An LLM's loss function, compiled: logits are not kept a second and a third time in float32."""

    def __init__(self, plain: Any, mode: str | None) -> None:
        self.plain = plain
        self._compiled = torch.compile(plain, mode=mode)

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Any = None,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if num_items_in_batch is not None:
            num_items_in_batch = torch.as_tensor(num_items_in_batch, device=logits.device)
        loss: Tensor = self._compiled(
            logits, labels, vocab_size, num_items_in_batch=num_items_in_batch, shift_labels=shift_labels
        )
        return loss
