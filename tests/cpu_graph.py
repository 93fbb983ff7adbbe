"""What a CUDA graph does, on the CPU: the operations of a call, recorded once and repeated on the same tensors.

No Python of the call runs when it is repeated, and results lie where they lay. What would make a capture fail is an error:
an operation whose result the host waits for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise AssertionError(f"{func} waits for the device")
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output


def captured(call: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """As `model.graphs.captured` on a GPU; the first repetition is made here."""
    recorder = _Recorder()
    with recorder:
        call()

    def replay() -> None:
        for func, args, kwargs, output in recorder.calls:
            for old, new in zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    return replay
