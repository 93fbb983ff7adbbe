"""Linear maps that read the same input as one product: query, key and value of attention, gate and up of an MLP.

    q_proj.weight ┐                       ┌ q
    k_proj.weight ├ rows of one weight ─x─┼ k      each map is called as before: the first multiplies, the others take their part
    v_proj.weight ┘                       └ v

A step of a few rows spends much of its time in starting small products. The maps keep their weights, which become views of the
joined one, so that nothing is held twice and what changes a weight in place changes the product. Another model's weights that
lay in the same storage stay where they were. Source: our choice.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pal_audio.integration.normed_projection import are_plain

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # in the order in which models call them


class JoinedMaps:
    """Maps of one input, and the weight that theirs are rows of.

    Args:
        maps: of `joinable`, in the order of their rows. The data of their weights and biases becomes views of joined ones.
    """

    def __init__(self, maps: Sequence[nn.Linear]) -> None:
        self.maps = tuple(maps)
        self.sizes = [part.out_features for part in maps]
        self.weight = _joined([part.weight for part in maps])
        self.bias = None if maps[0].bias is None else _joined([part.bias for part in maps])
        self._replaced = False
        self._kept: list[Tensor] = []  # the input of the last product, and what it gave for the maps behind the first
        self._others = [_Other(part, number, self._kept) for number, part in enumerate(maps) if number > 0]

    def forward(self, inputs: Tensor) -> Tensor:
        """What the first map gives; what the others give is kept for them."""
        own, *others = F.linear(inputs, self.weight, self.bias).split(self.sizes, dim=-1)
        self._kept[:] = [inputs, *others]
        return own

    def replace(self) -> None:
        """Let the maps be called as one product; a map that is called before the first, or on another input, makes its own.

        Maps of which one has a `forward` of its own by now stay as they are.
        """
        if any("forward" in vars(part) for part in self.maps):
            return
        self._replaced = True
        for part, forward in zip(self.maps, (self.forward, *(other.forward for other in self._others)), strict=True):
            part.forward = forward  # type: ignore[method-assign, assignment]

    def restore(self) -> None:
        """Undo `replace`."""
        for part in self.maps if self._replaced else ():
            part.__dict__.pop("forward", None)
        self._replaced = False
        self.forget()

    def forget(self) -> None:
        """Let go of the last input and its outputs; at the end of what is traced, so that nothing of it is left behind."""
        self._kept.clear()


class _Other:
    """A map behind the first. Its method, and no `partial`: torch would compile anew for each of these, not for each kind."""

    def __init__(self, part: nn.Linear, number: int, kept: list[Tensor]) -> None:
        self.part, self.number, self.kept = part, number, kept

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kept and self.kept[0] is inputs:
            return self.kept[self.number]
        return F.linear(inputs, self.part.weight, self.part.bias)


def joinable(part: nn.Module, model: nn.Module) -> list[tuple[nn.Linear, ...]]:
    """Groups of maps inside a part that one product can take the place of.

    Adapters, quantised and sharded weights, memory that processes share, hooks and another `forward` keep a group out; where
    weights would have to be moved, so does any other parameter that lies in the same storage, as a tied one does.

    Args:
        part: whose maps are looked at.
        model: the whole that it belongs to: a weight may be tied to one anywhere.
    """
    sharing = Counter(_storage(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    groups: Iterator[list[Any]] = (
        [getattr(module, name, None) for name in names] for module in part.modules() for names in GROUPS
    )
    return [tuple(maps) for maps in groups if None not in maps and _can_join(maps, sharing)]


def places(groups: Sequence[Sequence[nn.Linear]]) -> tuple[int, ...]:
    """Where weights and biases lie: a graph that was captured before they were moved reads what is no longer theirs."""
    kinds = ((part.weight, part.bias) for maps in groups for part in maps)
    return tuple(0 if tensor is None else tensor.data_ptr() for pair in kinds for tensor in pair)


@contextmanager
def called_as_one(joined: Sequence[JoinedMaps]) -> Iterator[None]:
    """Within it, maps are called as one product each group."""
    try:
        for maps in joined:
            maps.replace()
        yield
    finally:
        for maps in joined:
            maps.restore()


def _can_join(maps: list[Any], sharing: Counter[Any]) -> bool:
    if not are_plain(*maps) or len({part.in_features for part in maps}) > 1:
        return False
    kinds = [[part.weight for part in maps], *([] if maps[0].bias is None else [[part.bias for part in maps]])]
    return all(
        all(type(part) is nn.Parameter and type(part.data) is Tensor and not _is_other_processes(part) for part in parts)
        and (_are_rows(parts) or all(sharing[_storage(part)] == 1 for part in parts))
        for parts in kinds
    )


def _is_other_processes(tensor: Tensor) -> bool:
    """Whether other processes may read and write it where it lies. On a GPU torch says so of every tensor."""
    return tensor.device.type == "cpu" and tensor.is_shared()


def _storage(tensor: Tensor) -> Any:
    """What tensors of one storage have in common; one without storage, as on `meta`, is like all such."""
    return tensor.device, tensor.untyped_storage().data_ptr() if type(tensor.data) is Tensor else id(tensor)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor that the parts are rows of, in order; made where it is not there yet."""
    sizes = [len(part) for part in parts]
    with torch.no_grad(), torch.inference_mode(False):  # weights of an inference tensor could not be trained any more
        if _are_rows(parts):
            first = parts[0].data
            return first.as_strided((sum(sizes), *first.shape[1:]), first.stride())
        joined = torch.cat([part.data for part in parts])
        for part, rows in zip(parts, joined.split(sizes), strict=True):
            part.data = rows
    return joined


def _are_rows(parts: Sequence[Tensor]) -> bool:
    """Whether they lie one behind another in one storage, as `_joined` leaves them."""
    ends = [part.data_ptr() + part.nbytes for part in parts[:-1]]
    return (
        all(part.is_contiguous() for part in parts)
        and len({_storage(part) for part in parts}) == 1
        and ends == [part.data_ptr() for part in parts[1:]]
        and parts[0].data_ptr() > 0
    )
