"""A short name for a set of weights, so that an audio memory is refused by a model that did not make it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLES = 256
# What peft's layers keep beside their parameters: whether, and how strongly, an adapter takes part.
_ADAPTER_STATE = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")


def fingerprint(modules: Iterable[nn.Module], config: Any) -> str:
    """Hexadecimal fingerprint of modules and a JSON-able configuration.

    A parameter enters by name, shape, dtype and up to 256 evenly spaced values: any training step changes it, and reading it
    costs a small gather. It is read anew each time, since nothing tells all in-place changes (a fused optimizer and `.data`
    leave the version counter alone). Adapters enter by their state too. Source: our choice.
    """
    return Fingerprint()([("", module) for module in modules], config)


class Fingerprint:
    """`fingerprint` for who asks often: which parameters there are is looked up again only where a module has changed its own.

    Values are read each time, as there. What it last looked at is kept alive until the next call or `forget`. Threads may share
    it.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None
        self._told = (b"", "")  # what was hashed, and its digest

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model looks for itself."""
        return Fingerprint, ()

    def forget(self) -> None:
        """Let go of what it last looked at, as weights that are about to be moved elsewhere."""
        self._seen = None

    @torch.no_grad()
    def __call__(self, modules: list[tuple[str, nn.Module]], config: Any) -> str:
        """See `fingerprint`; each module has a name before those of its parts."""
        seen, told = self._seen, self._told
        if seen is None or not seen.is_still(modules):
            self._seen = seen = _Seen.of(modules)
        head = [json.dumps(config, sort_keys=True, default=str)]
        for stateful, names in seen.heads:
            head += [f"{name}{sorted(state.items())}" for name, part in stateful if (state := _state(part))]
            head += names
        samples: dict[torch.device, list[Tensor]] = {}
        for sample in seen.samples():
            samples.setdefault(sample.device, []).append(sample)
        values = b"".join(_as_float32(tensors).numpy().tobytes() for tensors in samples.values())
        hashed = "".join(head).encode() + values
        if hashed != told[0]:
            self._told = told = hashed, hashlib.sha256(hashed).hexdigest()[:32]
        return told[1]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What there is to be read.

    Attributes:
        modules: that were asked about, with their names.
        parts: these and all inside them, and what each held.
        heads: for each module its parts that had a state beside their parameters, and its parameters' names, shapes and dtypes.
        parameters: of all, and the shape and dtype of each.
        views: of the values that are read, by the parameter's number; only where they are views of it.
    """

    modules: list[tuple[str, nn.Module]]
    parts: list[tuple[nn.Module, tuple[Any, ...]]]
    heads: list[tuple[list[tuple[str, nn.Module]], list[str]]]
    parameters: list[tuple[nn.Parameter, tuple[Any, ...]]]
    views: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, modules: list[tuple[str, nn.Module]]) -> "_Seen":
        seen = cls(list(modules), [], [], [])
        for prefix, module in modules:
            parts, parameters = list(module.named_modules(prefix=prefix)), list(module.named_parameters(prefix=prefix))
            seen.parts.extend((part, _held(part)) for _, part in parts)
            seen.parameters.extend((parameter, _kind(parameter)) for _, parameter in parameters)
            names = [f"{name}{tuple(parameter.shape)}{parameter.dtype}" for name, parameter in parameters]
            seen.heads.append(([(name, part) for name, part in parts if _state(part)], names))
        return seen

    def is_still(self, modules: list[tuple[str, nn.Module]]) -> bool:
        return (
            modules == self.modules
            and all(_held(part) == held for part, held in self.parts)
            and all(_kind(parameter) == kind for parameter, kind in self.parameters)
        )

    def samples(self) -> list[Tensor]:
        """Values of each parameter, read where it lies now."""
        samples = []
        for number, (parameter, _) in enumerate(self.parameters):
            sample = self.views.get(number)
            # A view keeps what it looks at alive, so that no other tensor gets its address.
            if sample is None or sample.data_ptr() != parameter.data_ptr() or not parameter.is_contiguous():
                sample = _sample(parameter)
                if parameter.is_contiguous() and parameter.is_floating_point():
                    self.views[number] = sample
            samples.append(sample)
        return samples


def _held(module: nn.Module) -> tuple[Any, ...]:
    """The names and objects right inside a module, to be compared with what it held before, which is kept alive meanwhile."""
    return (*module._modules, *map(id, module._modules.values()), *module._parameters, *map(id, module._parameters.values()))


def _kind(parameter: nn.Parameter) -> tuple[Any, ...]:
    return parameter.shape, parameter.dtype


def _state(part: nn.Module) -> dict[str, Any]:
    return {key: getattr(part, key) for key in _ADAPTER_STATE if hasattr(part, key)}


def _sample(parameter: nn.Parameter) -> Tensor:
    """Up to 256 evenly spaced values."""
    size = parameter.numel()
    step = max(1, size // _SAMPLES)
    if parameter.is_contiguous():
        sample = parameter.as_strided((min(_SAMPLES, -(-size // step)),), (step,))
    else:
        sample = parameter.flatten()[::step][:_SAMPLES]
    if not sample.is_floating_point():  # quantised: float32 holds a byte exactly, but not an int32
        sample = sample.contiguous().view(torch.uint8)
    return sample


def _as_float32(tensors: list[Tensor]) -> Tensor:
    """Tensors of one device, one after another, on the CPU; gathered there by dtype, with one kernel and one copy for each."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1:  # as most models have it: in order already
        return torch.cat(tensors).cpu().float()
    floats: list[Tensor] = [torch.empty(0)] * len(tensors)
    for dtype in dtypes:
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        gathered = torch.cat([tensors[place] for place in places]).cpu().float()
        for place, part in zip(places, gathered.split([len(tensors[place]) for place in places]), strict=True):
            floats[place] = part
    return torch.cat(floats)
