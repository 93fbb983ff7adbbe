"""ESC-50 and its ten-class part ESC-10: environmental sounds by class.

Folds 1-3 train, 4 val, 5 test. Published zero-shot scores take all five folds once: concatenate the manifests for them.
Source: K. J. Piczak, "ESC: Dataset for Environmental Sound Classification" (2015); the splits are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pal_audio.data.importers.base import Importer, Item
from pal_audio.data.importers.recordings import ESC_FOLDS, esc_rows, esc_table, in_turn
from pal_audio.errors import PalError

_SPLITS = {"train": "train", "test": "val", "final": "test"}  # of recordings, which are for development, to those here
_SPLIT_OF_FOLD = {fold: _SPLITS[split] for split, folds in ESC_FOLDS.items() for fold in folds}


def _items(root: Path, task: Literal["esc10", "esc50"]) -> Iterator[Item]:
    table, rows = esc_table(root), []
    for number, fold, recording in esc_rows(table, task):
        if fold not in _SPLIT_OF_FOLD:
            raise PalError(f"{table}, line {number}: fold {fold}; the folds are 1 to 5")
        rows.append((_SPLIT_OF_FOLD[fold], recording))
    return in_turn(rows)


_NEEDS = "meta/esc50.csv and audio/*.wav"
_ARCHIVES = "ESC-50-master.zip (GitHub, karolpiczak/ESC-50)"
ESC50 = Importer("esc50", _NEEDS, _ARCHIVES, lambda root: _items(root, "esc50"))
ESC10 = Importer("esc10", _NEEDS, _ARCHIVES, lambda root: _items(root, "esc10"))
