"""Importers of two public sets in their official layouts: ESC-50 (with its ten-class part ESC-10) and Free Spoken Digit (FSDD).

    ESC-50   meta/esc50.csv   filename, fold, target, category, esc10, ...      audio/<filename>
    FSDD     recordings/{digit}_{speaker}_{index}.wav (or .flac)

Splits: `train` and `test` are for development; `final` is the part that scores are published on. ESC: folds 1-3, 4, 5. FSDD:
index 5-44, 45-49, 0-4. Paths point at the originals: nothing is copied, nothing is written under the root.
Source: K. J. Piczak, "ESC" (2015); Z. Jackson, "Free Spoken Digit Dataset", whose official test part is index 0-4.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    table = _find(root, _ESC_FOLDERS, "meta/esc50.csv", "ESC-50")
    folder = table.parent.parent.resolve() / "audio"
    found = []
    with open(table, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        missing = {"filename", "fold", "category", "esc10"} - set(rows.fieldnames or ())
        if missing:
            raise PalError(f"{table}: the table lacks the column(s) {', '.join(sorted(missing))}")
        for row in rows:
            place = f"{table}, line {rows.line_num}"
            name, fold = row["filename"] or "", row["fold"] or ""
            if not fold.isdecimal() or not row["category"]:
                raise PalError(f"{place}: fold {fold!r}, category {row['category']!r}")
            if int(fold) not in ESC_FOLDS[split] or (task == "esc10" and row["esc10"] != "True"):
                continue
            if name in ("", ".", "..") or Path(name).name != name or not (folder / name).is_file():
                raise PalError(f"{place}: no such file {name!r} in {folder}")
            answer = row["category"].replace("_", " ")
            meta = {"fold": int(fold), "category": row["category"]}
            found.append(Recording(folder / name, task, answer, SOUND_WORDINGS, meta))
    return _filled(found, table, split)


def digit_recordings(root: Path, split: RecordingSplit) -> list[Recording]:
    """List the recordings of the Free Spoken Digit Dataset; other files in the folder are passed over.

    Args:
        root: The set's folder, or one that holds it as `fsdd` or `free-spoken-digit-dataset`.
        split: Which index numbers.

    Raises:
        PalError: The layout is not there or the split is empty.
    """
    folder = _find(root, _DIGIT_FOLDERS, "recordings", "Free Spoken Digit").resolve()
    found = []
    for path in sorted(folder.iterdir()):
        name = _DIGIT_NAME.fullmatch(path.name)
        if name is not None and int(name["index"]) in DIGIT_INDICES[split]:
            meta = {"speaker": name["speaker"], "index": int(name["index"])}
            found.append(Recording(path, "digits", DIGIT_WORDS[int(name["digit"])], DIGIT_WORDINGS, meta))
    return _filled(found, folder, split)


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
    turns: dict[str, int] = {}
    examples = []
    for recording in RECORDING_TASKS[task](root, split):
        turn = turns.get(recording.answer, 0)
        turns[recording.answer] = turn + 1
        examples.append(recording.example(turn % len(recording.wordings)))
    return examples


def _find(root: Path, folders: Sequence[str], inside: str, set_name: str) -> Path:
    for folder in folders:
        if (root / folder / inside).exists():
            return root / folder / inside
    looked = ", ".join(str(Path(folder) / inside) for folder in folders)
    raise PalError(f"no {set_name} layout under {root}; looked for {looked}")


def _filled(found: list[Recording], place: Path, split: str) -> list[Recording]:
    if not found:
        raise PalError(f"{place}: no recording of split {split!r}")
    return found
