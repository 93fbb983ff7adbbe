"""CUDA graphs: calls without arguments, captured once and replayed with one launch. On the CPU a call stays what it is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def captured(call: Callable[[], None], device: torch.device, again: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """A call that reads and writes tensors of fixed addresses, as one launch.

    Args:
        call: is run twice before, so that whatever it compiles or makes at first is there; never waits for the device.
        device: where it runs; on the CPU nothing is captured.
        again: undoes what must not add up when `call` is repeated.
    """
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
            again()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def place_of(tensor: Tensor) -> tuple[Any, ...]:
    """What a graph knows a tensor by."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
