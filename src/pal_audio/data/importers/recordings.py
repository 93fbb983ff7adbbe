"""Two public sets in their official layouts: ESC-50 (with its ten-class part ESC-10) and Free Spoken Digit (FSDD).

    ESC-50   meta/esc50.csv   filename, fold, target, category, esc10, ...      audio/<filename>
    FSDD     recordings/{digit}_{speaker}_{index}.wav (or .flac)

Splits: `train` and `test` are for development; `final` is the part that scores are published on. ESC: folds 1-3, 4, 5. FSDD:
index 5-44, 45-49, 0-4. Paths point at the originals: nothing is copied, nothing is written under the root.
Source: K. J. Piczak, "ESC" (2015); Z. Jackson, "Free Spoken Digit Dataset", whose official test part is index 0-4.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pal_audio.data.importers.base import Item, find_layout
from pal_audio.data.importers.tables import csv_rows
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.errors import PalError

RecordingSplit = Literal["train", "test", "final"]
ESC_FOLDS: dict[str, tuple[int, ...]] = {"train": (1, 2, 3), "test": (4,), "final": (5,)}
DIGIT_INDICES: dict[str, range] = {"train": range(5, 45), "test": range(45, 50), "final": range(5)}
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SOUND_WORDINGS = ("What sound is this?", "What do you hear?", "Which sound is in this recording?", "Name the sound.")
DIGIT_WORDINGS = ("Which digit is spoken?", "What number is said?", "Which digit do you hear?", "Name the digit.")

_ESC_FOLDERS = (".", "esc10", "esc50", "ESC-10", "ESC-50", "ESC-50-master")
_DIGIT_FOLDERS = (".", "fsdd", "free-spoken-digit-dataset", "free-spoken-digit-dataset-master")
_DIGIT_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)\.(wav|flac)")


@dataclass(frozen=True)
class Recording:
    """A recorded file and what it is."""

    path: Path
    task: str
    answer: str
    wordings: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def example(self, wording: int) -> Example:
        """Ask about it; `wording` counts on and wraps around."""
        question = self.wordings[wording % len(self.wordings)]
        return Example(
            id=f"{self.task}-{self.path.stem}-{wording}",
            messages=[
                Message(role="user", content=[AudioPart(path=str(self.path)), TextPart(text=question)]),
                Message(role="assistant", content=self.answer),
            ],
            task=self.task,
            meta=self.meta,
        )


def esc_recordings(root: Path, split: RecordingSplit, task: Literal["esc10", "esc50"] = "esc10") -> list[Recording]:
    """List the recordings of ESC-10 or ESC-50.

    Args:
        root: The set's folder, or one that holds it as `esc10`, `esc50` or `ESC-50`.
        split: Which folds.
        task: `esc10` keeps the ten classes that the table marks, `esc50` takes all.

    Raises:
        PalError: The layout is not there, a row of the table is wrong, a file is missing, or the split is empty.
    """
    found = []
    table = esc_table(root)
    for number, fold, recording in esc_rows(table, task):
        if fold not in ESC_FOLDS[split]:
            continue
        if not recording.path.is_file():
            raise PalError(f"{table}, line {number}: no such file {recording.path.name!r} in {recording.path.parent}")
        found.append(recording)
    return _filled(found, table, split)


def esc_table(root: Path) -> Path:
    """Find `meta/esc50.csv`, by which the set is known."""
    return find_layout(root, _ESC_FOLDERS, "meta/esc50.csv", "ESC-50")


def esc_rows(table: Path, task: Literal["esc10", "esc50"]) -> Iterator[tuple[int, int, Recording]]:
    """Yield line number, fold and recording for every row of the table that belongs to the task; files are not looked for."""
    folder = table.parent.parent.resolve() / "audio"
    for number, row in csv_rows(table, ("filename", "fold", "category", "esc10")):
        fold, category, name = row["fold"], row["category"], row["filename"]
        if not (fold.isascii() and fold.isdecimal()) or not category:
            raise PalError(f"{table}, line {number}: fold {fold!r}, category {category!r}")
        if task == "esc10" and row["esc10"] != "True":
            continue
        if name in ("", ".", "..") or Path(name).name != name:
            raise PalError(f"{table}, line {number}: no such file {name!r} in {folder}")
        meta = {"fold": int(fold), "category": category}
        yield number, int(fold), Recording(folder / name, task, category.replace("_", " "), SOUND_WORDINGS, meta)


def digit_recordings(root: Path, split: RecordingSplit) -> list[Recording]:
    """List the recordings of the Free Spoken Digit Dataset; other files in the folder are passed over.

    Args:
        root: The set's folder, or one that holds it as `fsdd` or `free-spoken-digit-dataset`.
        split: Which index numbers.

    Raises:
        PalError: The layout is not there or the split is empty.
    """
    folder = digit_folder(root)
    return _filled([recording for index, recording in digit_files(folder) if index in DIGIT_INDICES[split]], folder, split)


def digit_folder(root: Path) -> Path:
    """Find `recordings`, by which the set is known."""
    return find_layout(root, _DIGIT_FOLDERS, "recordings", "Free Spoken Digit").resolve()


def digit_files(folder: Path) -> Iterator[tuple[int, Recording]]:
    """Yield index number and recording of every file whose name is that of one."""
    for path in sorted(folder.iterdir()):
        name = _DIGIT_NAME.fullmatch(path.name)
        if name is not None:
            meta = {"speaker": name["speaker"], "index": int(name["index"])}
            yield int(name["index"]), Recording(path, "digits", DIGIT_WORDS[int(name["digit"])], DIGIT_WORDINGS, meta)


RECORDING_TASKS: dict[str, Callable[[Path, RecordingSplit], list[Recording]]] = {
    "esc10": lambda root, split: esc_recordings(root, split, "esc10"),
    "esc50": lambda root, split: esc_recordings(root, split, "esc50"),
    "digits": digit_recordings,
}


def import_recordings(task: str, root: Path, split: RecordingSplit) -> list[Example]:
    """Turn every recording of a split into one example; wordings take turns within each answer.

    Args:
        task: A key of `RECORDING_TASKS`.
        root: Folder of the set, or one that holds it.
        split: `train`, `test` or `final`.
    """
    if task not in RECORDING_TASKS:
        raise PalError(f"unknown set {task!r}; known are {', '.join(RECORDING_TASKS)}")
    return [item.example for item in in_turn((split, recording) for recording in RECORDING_TASKS[task](root, split))]


def in_turn(recordings: Iterable[tuple[str, Recording]]) -> Iterator[Item]:
    """Turn recordings with their split into items; wordings take turns within each answer of a split."""
    turns: Counter[tuple[str, str]] = Counter()
    for split, recording in recordings:
        turn = turns[split, recording.answer]
        turns[split, recording.answer] += 1
        yield Item(split, recording.example(turn % len(recording.wordings)))


def _filled(found: list[Recording], place: Path, split: str) -> list[Recording]:
    if not found:
        raise PalError(f"{place}: no recording of split {split!r}")
    return found
