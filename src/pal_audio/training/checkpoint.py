"""Checkpoints of a run: whole or not there, safe to read, verified before they are trusted.

    OUT/checkpoints/00000500/   model.safetensors  optimizer.safetensors  state.json  manifest.json (sizes and SHA-256)
    OUT/checkpoints/best.json   step and loss of the best evaluation, where a stage evaluates

Written under a temporary name, synced, renamed, and read once more before an older one goes. Random numbers need no place
in it: every step seeds its own.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.model.export import sync

_KEEP = 2
_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write a checkpoint named by `state["step"]`, and drop all but the newest two.

    An older one is kept where neither of the two is what its manifest says, and where it is the best one.

    Args:
        folder: OUT/checkpoints.
        model: all its parameters and buffers are kept.
        optimizer: its moments are kept; learning rates follow from the step.
        state: JSON-able; must hold `step`, and may hold `best` with the `step` of the best one, which best.json then says.

    Raises:
        PalError: the disk is full. The checkpoints from before are untouched, and nothing of this one stays.
    """
    final = folder / f"{state['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    with full_disk_named(folder):
        _clear_temporary(folder)
        try:
            _write(temporary, model, optimizer, state)
            shutil.rmtree(final, ignore_errors=True)  # there only where it was damaged, so that the run went on before it
            os.replace(temporary, final)
        finally:
            _clear_temporary(folder)
        sync(folder)
    best = state.get("best")
    mark_best(folder, best)
    kept = {newest_checkpoint(folder), None if best is None else folder / f"{best['step']:08d}"}
    for old in _all(folder)[:-_KEEP]:
        if old not in kept:
            shutil.rmtree(old)
    return final


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Make one clear line of what the system and safetensors say when the disk of `folder` is full."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has no errno, only the text of it.
        if getattr(error, "errno", None) not in _FULL and not any(f"(os error {number})" in str(error) for number in _FULL):
            raise
        advice = "make room, then go on with --resume; the last whole checkpoint is kept"
        raise PalError(f"{folder}: the disk is full ({advice})") from error


def _clear_temporary(folder: Path) -> None:
    """Remove what a kill in the middle of a save has left."""
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left)


def _write(temporary: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    temporary.mkdir(parents=True)
    save_file(_own_tensors(model.state_dict()), temporary / "model.safetensors")
    save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    listed = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(temporary.iterdir())}
    (temporary / "manifest.json").write_text(json.dumps(listed, indent=2), encoding="utf-8")
    for file in temporary.iterdir():
        sync(file)
    sync(temporary)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what its manifest says, or None."""
    return next((item for item in reversed(_all(folder)) if _verified(item)), None)


def mark_best(folder: Path, best: dict[str, Any] | None) -> None:
    """Say in best.json which checkpoint is the best, for whoever looks; a run itself goes by what its checkpoints hold."""
    if best is not None:
        write_text(folder / "best.json", json.dumps(best) + "\n")


def best_checkpoint(folder: Path, step: int) -> Path:
    """The checkpoint of the best evaluation.

    Raises:
        PalError: it is damaged.
    """
    best = folder / f"{step:08d}"
    if not _verified(best):
        raise PalError(f"{best}: the best checkpoint is damaged; begin again with --overwrite")
    return best


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's tensors into a model and an optimizer made the same way; gives its state."""
    missing, unexpected = model.load_state_dict(load_file(path / "model.safetensors"), strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= _shared_names(model), missing
    tensors = load_file(path / "optimizer.safetensors")
    number = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{number}."
            moments = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {
                # In the parameter's strides (channels last in convolutions): the fused step walks all of them by address.
                key: tensor.to(parameter.device) if key == "step" else torch.empty_like(parameter).copy_(tensor)
                for key, tensor in moments.items()
            }
            number += 1
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{number}.{key}": value.detach().cpu().contiguous()
        for number, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _own_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, each storage once (tied weights)."""
    kept: dict[int, str] = {}
    for name, tensor in state.items():
        kept.setdefault(tensor.data_ptr(), name)
    return {name: state[name].detach().cpu().contiguous() for name in kept.values()}


def _shared_names(model: nn.Module) -> set[str]:
    state = model.state_dict()
    return set(state) - set(_own_tensors(state))


def _all(folder: Path) -> list[Path]:
    return sorted(item for item in folder.glob("[0-9]*") if item.is_dir()) if folder.is_dir() else []


def _verified(path: Path) -> bool:
    try:
        listed = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return bool(listed) and all(
            (path / name).stat().st_size == entry["bytes"] and _sha256(path / name) == entry["sha256"]
            for name, entry in listed.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
