"""Clocks, memory and the machine: what every benchmark reads its numbers from."""

import datetime
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GIB = 2**30
SETTLE_S = 0.5  # of load before what takes a millisecond is timed: a GPU may be 6% quicker at first


@dataclass(frozen=True)
class Times:
    """Seconds of repeated calls: median, tenth and ninetieth percentile, and how many."""

    median_s: float
    p10_s: float
    p90_s: float
    num: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Times":
        low, high = np.percentile(seconds, [10, 90])
        return cls(statistics.median(seconds), float(low), float(high), len(seconds))


def timed(call: Callable[[], Any], num: int, device: torch.device, before: Callable[[], Any] = lambda: None) -> Times:
    """Time calls one by one: CUDA events on a GPU (read at the end, so nothing waits in between), the clock elsewhere.

    Args:
        call: what is timed.
        num: how often.
        device: where it runs.
        before: called before each, outside the clock.
    """
    if device.type != "cuda":
        seconds = []
        for _ in range(num):
            before()
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return Times.of(seconds)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(num)]
    for start, end in events:
        before()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return Times.of([start.elapsed_time(end) / 1000 for start, end in events])


def settle(call: Callable[[], Any], device: torch.device) -> None:
    """Call again and again for `SETTLE_S`, so that what is timed next finds a GPU as a lasting load finds it."""
    if device.type != "cuda":
        return
    end = time.perf_counter() + SETTLE_S
    while time.perf_counter() < end:
        call()
        torch.cuda.synchronize(device)


def weights_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def gradients_bytes(module: nn.Module) -> int:
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return sum(grad.numel() * grad.element_size() for grad in grads)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Most bytes allocated since `reset_peak`; None where it is not measured."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def clean(device: torch.device) -> None:
    """Forget compiled code and give back what nothing refers to, so that the next case starts from empty memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product in this dtype, the median of several."""
    size, num = (8192, 20) if device.type == "cuda" else (256, 5)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    return 2 * size**3 / timed(lambda: left @ right, num, device).median_s


def bandwidth(device: torch.device) -> float:
    """Bytes a second read and written by one large copy, the median of several."""
    source = torch.empty(GIB if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source), 10, device).median_s


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def hardware(device: torch.device) -> dict[str, Any]:
    """The device and the versions that a number depends on; part of a row's key."""
    import transformers

    import pal_audio

    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device)
        if is_cuda
        else f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if is_cuda else None,
        "cuda": torch.version.cuda if is_cuda else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "pal_audio": pal_audio.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Of the checkout that this file lies in, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
