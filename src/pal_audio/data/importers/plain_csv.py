"""A table of one's own: path[,start_s,end_s],question,answer or path[,start_s,end_s],label, with a header.

A column `split` (train, val, test) or the file's name says the split; without either it is train. "; " separates several labels.
Source: our choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from pal_audio.config import one_line
from pal_audio.data.importers.base import Importer, Item, annotation_files, asked, split_of
from pal_audio.data.importers.recordings import SOUND_WORDINGS
from pal_audio.data.importers.tables import csv_rows
from pal_audio.data.manifest import AudioPart
from pal_audio.errors import PalError

_SPLITS = ("train", "val", "test")


def _items(root: Path) -> Iterator[Item]:
    folder = root if root.is_dir() else root.parent
    for path in annotation_files(root, (".csv",), "CSV"):
        for number, row in csv_rows(path, ("path",)):
            place = f"{path}, line {number}"
            try:
                yield _item(row, folder, path, number, place)
            except ValidationError as error:
                raise PalError(f"{place}: {one_line(error)}") from None


def _item(row: dict[str, str], folder: Path, path: Path, number: int, place: str) -> Item:
    split = (row.get("split") or split_of(path.stem)).strip()
    if split not in _SPLITS:
        raise PalError(f"{place}: split {split!r}; there are {', '.join(_SPLITS)}")
    if not row["path"].strip():
        raise PalError(f"{place}: the path is empty")
    times = {name: row[name] for name in ("start_s", "end_s") if (row.get(name) or "").strip()}
    clip = AudioPart.model_validate({"path": str(folder / row["path"].strip()), **times})
    id = f"{path.stem}-{number}"
    if "question" in row and "answer" in row:
        return Item(split, asked(id, [clip], row["question"], row["answer"], (row.get("task") or "").strip()))
    if "label" in row:
        wording = SOUND_WORDINGS[number % len(SOUND_WORDINGS)] if split == "train" else SOUND_WORDINGS[0]
        labels = [label.strip() for label in row["label"].split(";") if label.strip()]
        answer = "; ".join(labels)
        return Item(split, asked(id, [clip], wording, answer, "classify" if len(labels) < 2 else "tags", {"labels": labels}))
    raise PalError(f"{path}: the table needs the columns question and answer, or label, beside path")


CSV = Importer(
    "csv",
    "CSV tables with a header: path[,start_s,end_s],question,answer or path[,start_s,end_s],label; or one of them as ROOT",
    "your own",
    _items,
    takes_file=True,
)
