"""Clotho: five captions a clip of 15 to 30 s. development train, validation val, evaluation test.

Source: Drossos et al., "Clotho: an Audio Captioning Dataset" (2020), version 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import Importer, Item, captioned, found_tables
from pal_audio.data.importers.tables import csv_rows
from pal_audio.errors import PalError

_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
_PART_OF_SPLIT = {"train": "development", "val": "validation", "test": "evaluation"}
_SPLIT_OF_TABLE = {f"clotho_captions_{part}.csv": split for split, part in _PART_OF_SPLIT.items()}
_TABLE_FOLDERS = (".", "clotho_csv_files", "csv")


def _items(root: Path) -> Iterator[Item]:
    for name, table in found_tables(root, _SPLIT_OF_TABLE, _TABLE_FOLDERS, "Clotho").items():
        split = _SPLIT_OF_TABLE[name]
        part = _PART_OF_SPLIT[split]
        places = (part, f"clotho_audio_{part}/{part}", f"clotho_audio_{part}", f"clotho_audio_files/{part}", f"audio/{part}")
        folder = next((root / place for place in places if (root / place).is_dir()), root / part)
        for number, row in csv_rows(table, ("file_name", *_CAPTIONS)):
            captions = [row[column].strip() for column in _CAPTIONS if row[column].strip()]
            if not row["file_name"] or not captions:
                raise PalError(f"{table}, line {number}: file_name {row['file_name']!r} with {len(captions)} captions")
            clip, id = folder / row["file_name"], f"clotho-{split}-{number}"
            yield from captioned(split, id, clip, captions, "caption", {"file_name": row["file_name"]})


CLOTHO = Importer(
    "clotho",
    "clotho_captions_{development,validation,evaluation}.csv and the folders development/, validation/, evaluation/",
    "clotho_audio_*.7z and clotho_captions_*.csv (Zenodo, record 3490684)",
    _items,
)
