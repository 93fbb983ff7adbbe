"""A short name for a set of weights, so that an audio memory is refused by a model that did not make it."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLES = 256
# What peft's layers keep beside their parameters: whether, and how strongly, an adapter takes part.
_ADAPTER_STATE = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")


@torch.no_grad()
def fingerprint(modules: Iterable[nn.Module], config: Any) -> str:
    """Hexadecimal fingerprint of modules and a JSON-able configuration.

    A parameter enters by name, shape, dtype and up to 256 evenly spaced values: any training step changes it, and reading it
    costs a small gather. It is read anew each time, since nothing tells all in-place changes (a fused optimizer and `.data`
    leave the version counter alone). Adapters enter by their state too. Source: our choice.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    samples: dict[torch.device, list[Tensor]] = {}
    for module in modules:
        for name, part in module.named_modules():
            state = {key: getattr(part, key) for key in _ADAPTER_STATE if hasattr(part, key)}
            if state:
                digest.update(f"{name}{sorted(state.items())}".encode())
        for name, parameter in module.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
            if not sample.is_floating_point():  # quantised: float32 holds a byte exactly, but not an int32
                sample = sample.contiguous().view(torch.uint8)
            samples.setdefault(parameter.device, []).append(sample)
    for tensors in samples.values():
        digest.update(_as_float32(tensors).numpy().tobytes())
    return digest.hexdigest()[:32]


def _as_float32(tensors: list[Tensor]) -> Tensor:
    """Tensors of one device, one after another, on the CPU; gathered there by dtype, with one kernel and one copy for each."""
    floats: list[Tensor] = [torch.empty(0)] * len(tensors)
    for dtype in {tensor.dtype for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        gathered = torch.cat([tensors[place] for place in places]).cpu().float()
        for place, part in zip(places, gathered.split([len(tensors[place]) for place in places]), strict=True):
            floats[place] = part
    return torch.cat(floats)
