"""What travels: results, marks, choices, the ends of logs, the language model and all encoders, each file small."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lab.recipes import BUNDLE_ENCODER

from pal_audio.errors import PalError

MAX_BYTES = 32 * 2**20
_FOLDERS = ("results", "sweep", "rates", "pace", "marks", "logs", "report", "elsewhere")
_LOG_BYTES = 4096


def pack(out: Path, folder: Path) -> list[str]:
    """Copy what is small; put into a new OUT it lets the lab go on without making those models again.

    Args:
        out: OUT.
        folder: new, empty, or of an earlier call.

    Returns:
        A line for each file that was too large, and one that says what was copied.

    Raises:
        PalError: there is no lab in OUT.
    """
    if not (out / "lab.json").is_file():
        raise PalError(f"{out}: no lab here (lab.json is missing)")
    said, num_files, num_bytes = [], 0, 0
    for path in sorted(_small(out)):
        size = path.stat().st_size
        if size > MAX_BYTES:
            said.append(f"left out: {path.relative_to(out)} has {size} bytes, over the limit of {MAX_BYTES}")
            continue
        target = folder / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "logs":
            target.write_bytes(path.read_bytes()[-_LOG_BYTES:])
        else:
            shutil.copyfile(path, target)
        num_files, num_bytes = num_files + 1, num_bytes + target.stat().st_size
    return [*said, f"{folder}: {num_files} files, {num_bytes / 2**20:.1f} MiB"]


def _small(out: Path) -> Iterator[Path]:
    yield out / "lab.json"
    for name in _FOLDERS:
        place = out / name
        yield from [place] if place.is_file() else (path for path in place.rglob("*") if path.is_file())
    yield from (out / "robust").glob("*.json")
    ended = (run for run in (out / "runs").glob(f"{BUNDLE_ENCODER}*") if any((run / "encoders").rglob("*.safetensors")))
    for run in (*(out / "runs").glob("lab-*"), *ended):  # those of the bundle, begun here, could not go on elsewhere
        for name in ("llm", "encoders"):
            yield from (path for path in (run / name).rglob("*") if path.is_file())
        yield from (path for path in (run / "scores.json", run / "recipe.json", run / "plan.json") if path.is_file())
