"""A short name for a set of weights, so that an audio memory is refused by a model that did not make it."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Fingerprint:
    """Fingerprint of some modules, computed again only when a parameter changed.

    A parameter enters by name, shape, dtype, sum, sum of magnitudes and 64 evenly spaced values in float64: a few
    reads of memory, no copy of the weights. Equal weights on CPU and GPU may differ in the last bits of a sum, so sums are
    rounded to six digits. Source: our choice.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._value = ""

    @torch.no_grad()
    def of(self, modules: Iterable[nn.Module], config: Any) -> str:
        """Hexadecimal fingerprint of the modules' parameters and a JSON-able configuration."""
        parameters = [item for module in modules for item in module.named_parameters()]
        # In-place changes move `_version`; a replaced parameter has another address.
        key = tuple((id(parameter), parameter._version, parameter.data_ptr(), parameter.dtype) for _, parameter in parameters)
        if key != self._key:
            digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
            for name, parameter in parameters:
                digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
                flat = parameter.detach().flatten()
                step = max(1, flat.numel() // 64)
                sample = flat[::step][:64].double().cpu().tolist()
                values = [flat.double().sum().item(), flat.double().abs().sum().item(), *sample]
                digest.update(",".join(f"{value:.6e}" for value in values).encode())
            self._key, self._value = key, digest.hexdigest()[:32]
        return self._value
