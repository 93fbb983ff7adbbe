"""FSD50K: several of 200 classes a clip. `dev.csv` says train or val in its column `split`; `eval.csv` is test.

Labels are separated by commas there and by "; " in the answer, as LTU's scorer expects; `meta["labels"]` is the list.
Source: Fonseca et al., "FSD50K: an Open Dataset of Human-Labeled Sound Events" (2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import Importer, Item, asked, found_tables
from pal_audio.data.importers.tables import csv_rows
from pal_audio.errors import PalError

_FOLDER_OF_TABLE = {"dev.csv": "FSD50K.dev_audio", "eval.csv": "FSD50K.eval_audio"}
_WORDINGS = ("Which sounds are in this recording?", "What do you hear?", "Name the sounds.")


def _items(root: Path) -> Iterator[Item]:
    tables = found_tables(root, _FOLDER_OF_TABLE, ("FSD50K.ground_truth", "FSD50K/FSD50K.ground_truth", "."), "FSD50K")
    for name, table in tables.items():
        columns = ("fname", "labels", "split") if name == "dev.csv" else ("fname", "labels")
        base = table.parent.parent if table.parent.name == "FSD50K.ground_truth" else table.parent
        for number, row in csv_rows(table, columns):
            split = row["split"] if name == "dev.csv" else "test"
            labels = [label.strip().replace("_", " ") for label in row["labels"].split(",") if label.strip()]
            if not row["fname"] or not labels or split not in ("train", "val", "test"):
                raise PalError(f"{table}, line {number}: fname {row['fname']!r}, labels {row['labels']!r}, split {split!r}")
            wording = _WORDINGS[number % len(_WORDINGS)] if split == "train" else _WORDINGS[0]
            clip = base / _FOLDER_OF_TABLE[name] / f"{row['fname']}.wav"
            meta = {"labels": labels}
            yield Item(split, asked(f"fsd50k-{split}-{row['fname']}", [clip], wording, "; ".join(labels), "tags", meta))


FSD50K = Importer(
    "fsd50k",
    "FSD50K.ground_truth/{dev,eval}.csv, FSD50K.dev_audio/ and FSD50K.eval_audio/",
    "FSD50K.ground_truth.zip, FSD50K.dev_audio.z*, FSD50K.eval_audio.z* (Zenodo, record 4060432)",
    _items,
)
