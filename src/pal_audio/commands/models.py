"""Which model a verb uses, and on which device."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pal_audio.errors import PalError
from pal_audio.many_objects import importing

RUNS = Path("runs")
BUNDLED = Path(__file__).parents[1] / "bundled"
"""The model that comes with the package."""

ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of a model or of a run. Otherwise $PAL_MODEL, then the last finished run under ./runs, then the bundled one."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]


class Choice(NamedTuple):
    """A model to load and where the choice came from."""

    model: str  # a folder
    reason: str


def choose(option: str | None) -> Choice:
    """The model of a command: `--model`, else $PAL_MODEL, else the last finished run under ./runs, else the bundled one.

    Raises:
        PalError: a model was named that is not there, or none was named, no run has finished and the package has none.
    """
    if option is not None:
        return Choice(resolve(option, "--model"), "--model")
    if named := os.environ.get("PAL_MODEL"):
        return Choice(resolve(named, "$PAL_MODEL"), "$PAL_MODEL")
    if (run := last_finished_run(RUNS)) is not None:
        return Choice(str(run / "final"), "the last finished run")
    if (BUNDLED / "config.json").is_file():
        return Choice(str(BUNDLED), "the bundled one")
    raise PalError(
        f"there is no model: no --model, no $PAL_MODEL and no finished run under {RUNS}/. "
        "Make one with `pal train quickstart` (a few minutes on two cores)"
    )


def resolve(name: str, said_by: str) -> str:
    """A model folder, or the final model of a run folder."""
    folder = Path(name).expanduser()
    for candidate in (folder, folder / "final"):
        if (candidate / "config.json").is_file():
            return str(candidate)
    if folder.exists():
        raise PalError(f"{said_by} {name}: not a model folder, it has neither config.json nor final/config.json")
    raise PalError(f"{said_by} {name}: no such folder")


def last_finished_run(runs: Path) -> Path | None:
    """The run folder whose finished.json is newest, among those that hold a final model."""
    finished = [file for file in runs.glob("*/finished.json") if (file.parent / "final" / "config.json").is_file()]
    return max(finished, key=lambda file: file.stat().st_mtime).parent if finished else None


def announce(choice: Choice) -> None:
    """Says the choice on stderr."""
    print(f"pal: model {choice.model} ({choice.reason})", file=sys.stderr)


def pick_device(wanted: str) -> str:
    """The device named, checked; for `auto` the first of CUDA, Apple's MPS and the CPU that is there.

    Raises:
        PalError: no such device on this machine.
    """
    with importing():
        import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PalError(f"--device {wanted}: this device cannot be used here; try `--device cpu`") from error
    return wanted


def load(name: str, device: str) -> tuple[Any, Any]:
    """Model and processor of a folder, without the progress bars of transformers.

    Raises:
        PalError: the folder is damaged or holds something else.
    """
    with importing():
        from safetensors import SafetensorError
        from transformers.utils.logging import disable_progress_bar

        from pal_audio.model import load as load_model

    disable_progress_bar()
    try:
        return load_model(name, device)
    except PalError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise PalError(f"{name}: this model cannot be loaded, the folder is damaged or of another kind ({error})") from error
