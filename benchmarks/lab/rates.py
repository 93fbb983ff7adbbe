"""Choices of learning rates: read and checked, and taken from an earlier lab.

FOLDER/rates/*.json, sweep/*.json ── whole, of this lab's factors? ──► OUT/rates, OUT/sweep

FOLDER is the OUT of another lab, what `pack` made of it, or a folder of its results.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.lab.flow import Flow, choice_file, trial_file
from benchmarks.lab.questions import read_json

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError


def read_choice(path: Path) -> dict[str, Any]:
    """What was tried for a family and which factor of its rates was chosen.

    Raises:
        PalError: the file is no such choice.
    """
    try:
        told = read_json(path)
        whole = [row for row in told["tried"] if "diverged" not in row]
        for row in whole:
            float(row["held_out"]["right"]), int(row["held_out"]["num"]), float(row["loss"]["held_out"] or 0)
        if told["factor"] not in [row["factor"] for row in whole]:
            raise ValueError("the chosen factor was not tried")
    except (KeyError, TypeError, ValueError) as error:
        raise PalError(f"{path}: no choice of learning rates that a lab made ({type(error).__name__}: {error})") from error
    return told


def rates_of(flow: Flow, folder: Path) -> dict[Path, dict[str, Any]]:
    """What another lab tried and chose for those families whose rates this lab has not begun to try.

    The earlier lab's arms need not be these; the report says whose rates were taken.

    Args:
        flow: the lab.
        folder: see the module.

    Returns:
        Contents by files of OUT, a family's choice behind what was tried for it.

    Raises:
        PalError: a family's choice or a run of its sweep is missing or damaged, or the factors are not this lab's.
    """
    if not folder.is_dir():
        raise PalError(f"--rates {folder}: no such folder")
    found: dict[Path, dict[str, Any]] = {}
    for family in sorted({recipe.family for recipe in [*flow.chosen, *flow.others]}):
        choice, runs = choice_file(family), [trial_file(family, factor) for factor in flow.factors]
        if any((flow.out / file).exists() for file in (choice, *runs)):
            continue  # its own
        missing = [str(file) for file in (choice, *runs) if not (folder / file).is_file()]
        if missing:
            raise PalError(
                f"--rates {folder}: {', '.join(missing)} not there; give a lab whose sweep of these --factors has ended"
            )
        told = read_choice(folder / choice)
        tried = sorted(float(row["factor"]) for row in told["tried"])
        if tried != sorted(flow.factors):
            them = ", ".join(f"{factor:g}" for factor in tried)
            raise PalError(f"{folder / choice}: tried {them} of the rates; give --factors likewise")
        for file in (*runs, choice):  # the choice last: it says that all are there
            found[flow.out / file] = read_json(folder / file) | {"taken": True}
    return found


def take(rates: dict[Path, dict[str, Any]]) -> list[str]:
    """Write what `rates_of` found; returns the families."""
    for file, content in rates.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(content) + "\n")
    return [file.stem for file, content in rates.items() if "tried" in content]
