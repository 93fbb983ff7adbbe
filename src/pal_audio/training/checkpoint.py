"""Checkpoints of a run: whole or not there, safe to read, verified before they are trusted.

    OUT/checkpoints/00000500/   model.safetensors  optimizer.safetensors  state.json  manifest.json (sizes and SHA-256)

Written under a temporary name, synced, then renamed. Random numbers need no place in it: every step seeds its own.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_KEEP = 2
_BLOCK = 1 << 20


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write a checkpoint named by `state["step"]`, and drop all but the newest two.

    Args:
        folder: OUT/checkpoints.
        model: all its parameters and buffers are kept.
        optimizer: its moments are kept; learning rates follow from the step.
        state: JSON-able; must hold `step`.
    """
    final = folder / f"{state['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_own_tensors(model.state_dict()), temporary / "model.safetensors")
    save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    listed = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(temporary.iterdir())}
    (temporary / "manifest.json").write_text(json.dumps(listed, indent=2), encoding="utf-8")
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    _sync(folder)
    for old in _all(folder)[:-_KEEP]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what its manifest says, or None."""
    return next((item for item in reversed(_all(folder)) if _verified(item)), None)


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
                key: tensor if key == "step" else tensor.to(parameter.device) for key, tensor in moments.items()
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
