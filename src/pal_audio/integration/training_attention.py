"""Which training steps attend in LAL layers by `training_kernel`, and which by the joined keys and the mask of `attention`.

    setting (auto, sdpa, triton) ── find_kernel ──► StepKernel ── begin of a forward ──► AttachedAudio
                                                                   a LAL layer ── why_not ──┬─ None: the kernel
                                                                                            └─ else SDPA; an error under "triton"

Shapes: B rows, L text tokens, H query heads, K key heads, A audio keys, d head width.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pal_audio.errors import PalError

AudioKernel = Literal["auto", "sdpa", "triton"]
"""How LAL layers attend in training: by our kernel where it serves, by SDPA, or by our kernel and nothing else."""
DEFAULT_KERNEL: AudioKernel = "auto"

HAS_TRITON = importlib.util.find_spec("triton") is not None  # it comes with torch's CUDA builds alone
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # tests run kernels so, without a GPU
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_SIZES = (16, 32, 64, 128, 256)

ROOM_BYTES = 140_000  # of shared memory, which blocks of the widest heads take; smaller GPUs have less

Bounds = tuple[Tensor, Tensor, Tensor]
"""Positions of text (B, L); the position (B, A) behind which text sees a key; its least (B,). All int32."""


@dataclass(frozen=True)
class StepKernel:
    """The kernel of one forward.

    Attributes:
        attend: `training_kernel.training_attention`.
        is_strict: a layer that it does not serve is an error.
    """

    attend: Callable[[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Bounds, int | None, float], Tensor]
    is_strict: bool


def check_triton(what: str, device: torch.device) -> None:
    """That Triton's kernels run on a device.

    Args:
        what: asks for them, and how to do without, for the message.
        device: of the model.

    Raises:
        PalError: Triton is not installed, or the device is no GPU.
    """
    if not HAS_TRITON:
        raise PalError(f"{what}: needs Triton, which is not installed; it comes with torch's CUDA builds")
    if device.type != "cuda" and not IS_INTERPRETED:
        raise PalError(f"{what}: Triton's kernels run on a GPU, but the model is on {device}")


def find_kernel(setting: str, device: torch.device) -> StepKernel | None:
    """The kernel of a training step on a device; None: attention by SDPA.

    Raises:
        PalError: there is no such setting, or "triton" cannot be had here.
    """
    if setting not in ("auto", "sdpa", "triton"):
        raise PalError(f"audio_kernel: {setting!r} is not one of auto, sdpa, triton")
    if setting == "triton":
        check_triton("audio_kernel 'triton' (take 'auto' or 'sdpa' to do without)", device)
    if setting == "sdpa" or (setting == "auto" and not (HAS_TRITON and device.type == "cuda" and _has_room(device))):
        return None
    from pal_audio.integration.training_kernel import training_attention

    return StepKernel(training_attention, setting == "triton")


def _has_room(device: torch.device) -> bool:
    """Whether the kernels' blocks fit into a GPU's multiprocessors: those of data centres since the A100."""
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= ROOM_BYTES


def why_not(
    query: Tensor,
    text: tuple[Tensor, Tensor],
    audio: tuple[Tensor, Tensor],
    bounds: Bounds,
    is_masked: bool,
    options: dict[str, Any],
) -> str | None:
    """What keeps a layer from the kernel, or None.

    Args:
        query: (B, H, L, d).
        text: keys and values.
        audio: keys and values.
        bounds: of this forward.
        is_masked: text has a mask that no window stands for.
        options: of the layer's call.
    """
    rows, _, length, size = query.shape
    keys, values = text
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if unknown:
        return f"it has no {unknown[0]}"
    if options.get("dropout"):
        return "it has no dropout"
    if is_masked:
        return "text comes with a mask; batches that are packed, or not padded, need none"
    if length < 2 or keys.shape[2] != length or bounds[0].shape[1] != length:
        return "text is no whole prompt"
    if audio[0].shape[0] != rows:
        return "audio is held once for all rows"
    if values.dtype not in DTYPES:
        return f"it does not compute in {values.dtype}"
    if size not in HEAD_SIZES or values.shape[3] != size:
        return f"heads of {size} are not a power of 2 from {HEAD_SIZES[0]} to {HEAD_SIZES[-1]}"
    return None
