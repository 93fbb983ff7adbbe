"""Kernels that a profile saw, by kinds that a reader understands: what `benchmarks/profile_steps.py` prints."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

import pal_audio.integration

OTHER = "other"
NUM_HEAVIEST = 15
TRITON_FUNCTION = re.compile(r"^@triton\.jit.*\n(?:@.*\n)*def (\w+)", re.MULTILINE)


def own_kernels() -> dict[str, str]:
    """The Triton functions of `pal_audio.integration`: kind by name. Read from the source, as Triton may not be here."""
    files = sorted(Path(pal_audio.integration.__path__[0]).glob("*.py"))
    return {name: f"own {file.stem}" for file in files for name in TRITON_FUNCTION.findall(file.read_text())}


OWN = own_kernels()
KINDS: dict[str, str] = {
    "attention (cuDNN)": r"cudnn.*sdpa",
    "attention (flash)": r"flash",
    "attention (memory-efficient)": r"fmha|attentionkernel|mem_eff|aten::_?scaled_dot_product",
    "optimizer": r"multi_tensor_apply|adam|^triton_for_|_foreach_",
    "logits: loss, argmax": r"log_softmax|nll_loss|cross_entropy|softmax_online|softmaxforward|softmaxbackward|argmax",
    "matrix products": r"gemm|nvjet|cutlass|xmma|gemv|splitk|cublas|^triton_(tem|mm|bmm)|aten::(_?addmm|b?mm|baddbmm)$",
    "norms, reductions (generated)": r"^triton_(red|per|spl)_",
    "elementwise, joins (generated)": r"^triton_",
    "embedding, indexing": r"embedding|index|gather|scatter|radix|cub::|compute_grad_weight|krn_|segment",
    "copies, memset": r"memcpy|memset|copy|catarray|fill|aten::(cat|clone|contiguous|zero_|zeros|to)$",
    "norms, elementwise (eager)": r"elementwise|reduce_kernel|norm|softmax|aten::(add|mul|div|sub|neg|pow|mean|sum|rsqrt|silu)",
}
"""Kinds of kernels by what their names hold, the first that does; what matches none is `OTHER`."""


@cache
def kind_of(name: str) -> str:
    """The kind of a kernel, or of an operator on the CPU."""
    function = re.sub(r"(_\d[\dcde]*)$", "", name)  # older Tritons append how they specialised
    if function in OWN:
        return OWN[function]
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


class Event(NamedTuple):
    """One run of a kernel, in seconds."""

    name: str
    start_s: float
    seconds: float


def events_of(found: profile, device: torch.device) -> list[Event]:
    """What ran on the device. On the CPU operators by their own time, one behind the other."""
    events = found.events() or []
    if device.type == "cuda":
        ran = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
        return [Event(event.name, event.time_range.start / 1e6, event.time_range.elapsed_us() / 1e6) for event in ran]
    laid, start_s = [], 0.0
    for event in events:
        laid.append(Event(event.name, start_s, event.self_cpu_time_total / 1e6))
        start_s += laid[-1].seconds
    return laid


def busy_seconds(events: Sequence[Event]) -> float:
    """Time in which at least one of them ran: kernels of several streams may overlap."""
    busy_s, until_s = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start_s):
        end_s = event.start_s + event.seconds
        busy_s += max(0.0, end_s - max(event.start_s, until_s))
        until_s = max(until_s, end_s)
    return busy_s


def summary(events: Sequence[Event], num_steps: int, wall_s: float) -> dict[str, Any]:
    """One phase: everything is of a step, the mean of `num_steps` profiled ones; `wall_s` was measured without the profiler."""
    names = {event.name: [0.0, 0] for event in events}
    kinds: dict[str, list[float]] = {kind: [0.0, 0] for kind in map(kind_of, names)}
    for event in events:
        for sums in (names[event.name], kinds[kind_of(event.name)]):
            sums[0] += event.seconds / num_steps
            sums[1] += 1 / num_steps
    heaviest = sorted(names.items(), key=lambda item: -item[1][0])[:NUM_HEAVIEST]
    busy_s = busy_seconds(events) / num_steps
    return {
        "wall_s": wall_s,
        "busy_s": busy_s,
        "idle_share": max(0.0, 1 - busy_s / wall_s),
        "num_kernels": len(events) / num_steps,
        "kernel_s": sum(event.seconds for event in events) / num_steps,
        "kinds": {kind: {"seconds": sums[0], "num": sums[1]} for kind, sums in kinds.items()},
        "heaviest": [{"name": name, "kind": kind_of(name), "seconds": sums[0], "num": sums[1]} for name, sums in heaviest],
    }
