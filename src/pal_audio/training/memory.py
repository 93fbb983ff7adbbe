"""How much memory a stage takes: weights, gradients and AdamW's moments counted, activations estimated; and what a device has.

Activations are what the backward pass keeps, in elements, with N = audio slots and text of a row, A = LAL keys of it, T = frames:

    each LLM layer             N (8 width + 4 intermediate)     inputs of norms, of projections and of the gated FFN
    each LAL layer of a stream A 4 width                        P_l's output, its norm, keys and values
    each Flamingo block        N (6 + 3 factor) width + A 2 width   norms, queries, its FFN; keys and values
    logits                     2 vocabulary a logit             and their gradient, in float32
    each layer of an encoder   T 24 width                       only where it trains

of 2 bytes under bfloat16, else 4. With checkpointing a layer keeps its input alone, and one layer at a time is whole. Attention
is taken to keep no scores. A rough estimate, which fused kernels change; it refuses nothing.

Source: our choice, after the count for a transformer layer in arXiv 2205.05198, section 4.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pal_audio.integration.key_values import find_layers
from pal_audio.integration.recompute import Recompute
from pal_audio.model import PalForConditionalGeneration
from pal_audio.model.parts import Parts

_MOMENTS = 2  # of AdamW, in the parameter's own type
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Memory:
    """Bytes of a stage."""

    weights: int
    gradients: int
    optimizer: int
    activations: int = 0

    @property
    def held(self) -> int:
        """Without activations: what no smaller batch would spare."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.held + self.activations

    def as_dict(self) -> dict[str, int]:
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class Row:
    """The largest row of a batch: tokens of text, those with logits, and of each encoder the frames of its clips."""

    num_text: int
    num_logits: int
    num_slots: int
    num_keys: tuple[int, ...]  # of each stream that gives keys: LAL, Flamingo
    num_frames: dict[str, int]


@dataclass(frozen=True)
class Device:
    """Where a run trains: `type` of torch, the maker's name, bytes of memory."""

    type: str
    name: str
    memory: int

    @classmethod
    def here(cls) -> "Device":
        """The device that accelerate takes: a GPU if there is one. Memory is the whole of it, in use or not."""
        if torch.cuda.is_available():
            found = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
            return cls("cuda", found.name, found.total_memory)
        return cls("mps" if torch.backends.mps.is_available() else "cpu", _processor_name(), _main_memory())


def held_memory(module: nn.Module) -> Memory:
    """What a module takes whose `requires_grad` are set; parameters may be on the meta device."""
    tensors = [*module.parameters(), *module.buffers()]
    trained = _bytes(parameter for parameter in module.parameters() if parameter.requires_grad)
    return Memory(_bytes(tensors), trained, _MOMENTS * trained)


def sharded_memory(module: nn.Module, memory: Memory, num: int, precision: str) -> Memory:
    """What one of `num` processes takes of it under `parallel: fsdp`.

    It holds its share of everything, and while a step runs all tensors outside the decoder layers as a whole, in the type
    that computes; see `training.parallel`. The layers that are whole for a moment are not counted.

    Args:
        module: of the stage.
        memory: of the whole module, by `held_memory`.
        num: processes; with one nothing is shared.
        precision: of the recipe.
    """
    if num == 1:
        return memory
    llm: Any = getattr(module, "language_model", None)
    layers = find_layers(llm) if llm is not None else []
    outside = memory.weights - _bytes(tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers()))
    whole = outside // 2 if precision == "bfloat16" else outside
    weights, gradients, optimizer = (-(-number // num) for number in (memory.weights, memory.gradients, memory.optimizer))
    return Memory(weights + whole, gradients, optimizer)


def activation_bytes(
    module: nn.Module,
    model: PalForConditionalGeneration | Parts,
    row: Row,
    num_rows: int,
    precision: str,
    checkpointing: bool = False,
    recompute_audio: Recompute = "none",
) -> int:
    """Activations of rows like this one; see the module's header.

    Args:
        module: what steps. Without an LLM in it only the encoders count.
        model: whose sizes are taken.
        row: the largest.
        num_rows: of one part of a batch.
        precision: of the recipe.
        checkpointing, recompute_audio: of the stage.
    """
    elements, logits = 0, 0
    if isinstance(module, PalForConditionalGeneration | Parts):
        text: Any = model.language_model.config.get_text_config()
        width, num_positions = text.hidden_size, row.num_text + row.num_slots
        inner = getattr(text, "intermediate_size", None) or 4 * width
        num_layers = text.num_hidden_layers
        layer, kept = num_positions * (8 * width + 4 * inner), num_positions * width
        elements += num_layers * kept + layer if checkpointing else num_layers * layer
        key_streams = [stream for stream in getattr(model, "streams", ()) if stream.gives_keys]
        for stream, num_keys in zip(key_streams, row.num_keys, strict=True):
            if stream.blocks is not None:
                block = num_positions * (6 + 3 * stream.config.integration.ffn_factor) * width + num_keys * 2 * width
                elements += block + (len(stream.layers) - 1) * kept if checkpointing else len(stream.layers) * block
                continue
            kept_each = {"none": 4, "light": 2, "full": 0}[recompute_audio] * width
            elements += num_keys * (4 * width if checkpointing else max(4 * width, len(stream.layers) * kept_each))
        logits = 2 * row.num_logits * text.vocab_size
    for name, num_frames in row.num_frames.items():
        if any(parameter.requires_grad for parameter in model.encoders[name].parameters()):
            config: Any = model.encoders[name].config
            elements += num_frames * max(1, config.num_hidden_layers) * 24 * config.hidden_size
    return num_rows * (elements * (2 if precision == "bfloat16" else 4) + logits * 4)


def size_text(num_bytes: float) -> str:
    """Bytes as people write them, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _main_memory() -> int:
    """Bytes of main memory, or of the container's share of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(_CGROUP.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or its share is "max"
        return whole


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unnamed processor")
