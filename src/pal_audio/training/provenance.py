"""Where a run comes from: commits, versions, device, and the bytes of its data; all of it in recipe.json.

OUT/recipe.json   identity, recipe, versions, git {recipe, package}, device, data {name: SHA-256}, resumed [what had changed]
"""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pal_audio
from pal_audio.data.file_hashes import hash_file
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import write_text
from pal_audio.data.mix import DataConfig
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.prepare import Prepared, places_of
from pal_audio.errors import PalError
from pal_audio.training.memory import Device
from pal_audio.training.recipe import Recipe

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "soundfile", "soxr")
_GIT_SECONDS = 20
_SURROUNDINGS = ("versions", "git", "device")


def describe_run(folder: Path, recipe: Recipe, recipe_path: str | Path, identity: str, device: Device) -> None:
    """Write recipe.json, or add to it how the machine differs on which a run goes on.

    Args:
        folder: of the run.
        recipe: resolved.
        recipe_path: its file.
        identity: of the resolved recipe.
        device: where it trains.
    """
    package = Path(pal_audio.__file__)
    now = {
        "versions": versions(),
        "git": {"recipe": commit(Path(recipe_path)), "package": commit(package) if _tracks(package) else None},
        "device": {"type": device.type, "name": device.name, "memory": device.memory},
    }
    file = folder / "recipe.json"
    if not file.is_file():
        _write(file, {"identity": identity, "recipe": recipe.model_dump(mode="json"), **now})
        return
    described = json.loads(file.read_text(encoding="utf-8"))
    last = (described.get("resumed") or [described])[-1]
    if {key: last.get(key) for key in _SURROUNDINGS} != now:
        _write(file, described | {"resumed": [*described.get("resumed", []), now]})


def check_data(folder: Path, recipe: Recipe, data: Prepared, frames: FrameCache | None) -> None:
    """Note the checksums of a run's data, or compare them with those that it began with.

    Raises:
        PalError: a run that goes on would see other data.
    """
    file = folder / "recipe.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    now = data_checksums(folder, recipe, data, frames)
    before = described.setdefault("data", now)
    for name in sorted({*now, *before}):
        if now.get(name) != before.get(name):
            raise PalError(
                f"{name} is not what {folder} was begun with (its SHA-256 differs); bring it back to go on, or begin again with "
                "--overwrite or in another folder"
            )
    _write(file, described)


def data_checksums(folder: Path, recipe: Recipe, data: Prepared, frames: FrameCache | None) -> dict[str, str]:
    """SHA-256 of each manifest and text, of sources of shards and of mix.json, and of a frame cache its encoders and dtype.

    Sound files are not read: they may be large, and a frame cache knows them by their content.
    """
    if isinstance(recipe.data, DataConfig | MixConfig):
        names = ("mix.json", "train.jsonl", "test.jsonl")
        found = {f"data/{name}": hash_file(str(folder / "data" / name)) for name in names}
    else:
        found = {str(path): hash_file(str(path)) for path in places_of(recipe.data).values()}
        found |= {f"shards of {name}": source.checksum for name, source in data.streams.items()}
    if frames is not None:
        found |= {f"frame_cache of encoder {name}": f"{encoder_id} {frames.dtype}" for name, encoder_id in frames.ids.items()}
    return found


def commit(path: Path) -> dict[str, Any] | None:
    """The commit that a file's folder is at.

    `dirty` is True where a tracked file of the folder differs from it, or this file is not in it.

    Returns:
        `{"commit": ..., "dirty": ...}`, or None where git is not installed or the folder is in no repository.
    """
    folder = path.absolute().parent
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    clean = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".") == "" and _tracks(path)
    return {"commit": head.strip(), "dirty": not clean}


def _tracks(path: Path) -> bool:
    """False also for a package that is installed somewhere under a repository of something else."""
    return _git(path.absolute().parent, "ls-files", "--error-unmatch", path.name) is not None


def versions() -> dict[str, str]:
    """Of Python, of this package and of those that change numbers."""
    return {
        "python": platform.python_version(),
        "pal-audio": pal_audio.__version__,
        **{name: version(name) for name in _PACKAGES},
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where it cannot say it."""
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _write(file: Path, described: dict[str, Any]) -> None:
    write_text(file, json.dumps(described, indent=2) + "\n")
