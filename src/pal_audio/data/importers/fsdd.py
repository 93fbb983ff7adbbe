"""Free Spoken Digit Dataset: which digit is said. Index 5-44 train, 45-49 val, 0-4 test (the official test part).

Source: Z. Jackson, "Free Spoken Digit Dataset"; the val part is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import Importer, Item
from pal_audio.data.importers.recordings import DIGIT_INDICES, digit_files, digit_folder, in_turn

_SPLITS = {"train": "train", "test": "val", "final": "test"}


def _items(root: Path) -> Iterator[Item]:
    split_of_index = {index: _SPLITS[split] for split, indices in DIGIT_INDICES.items() for index in indices}
    return in_turn((split_of_index.get(index, "train"), recording) for index, recording in digit_files(digit_folder(root)))


FSDD = Importer(
    "fsdd",
    "recordings/{digit}_{speaker}_{index}.wav",
    "free-spoken-digit-dataset-master.zip (GitHub, Jakobovski/free-spoken-digit-dataset)",
    _items,
)
