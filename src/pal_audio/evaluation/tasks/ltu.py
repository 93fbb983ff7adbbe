"""LTU's evaluation files (ESC-50, VGGSound, FSD50K, AudioSet, DCASE, VocalSound, TUT17, Beijing Opera) as they are.

Each item is asked what the file says, for nearly all of them one instruction for a caption, and the caption is matched to the
file's labels. `output` holds the truth, several labels separated by "; ". The labels are those of the whole file.
"""

from __future__ import annotations

import re
from pathlib import Path

from pal_audio.data.importers.openaqa import OPENAQA
from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import ALL, Task, importer_items, one_table

_NEEDS = "one of LTU's evaluation files as ROOT, and beside it the audio, each file where some end of its path leads"
_FROM = "the evaluation files of GitHub, YuanGongND/ltu; audio of the sets themselves"


def truths(output: str) -> list[str]:
    """Labels of an `output`: what stands after "Label:" (or all of it), parted at "; "."""
    text = re.sub(r"^\s*labels?\s*:", "", output, flags=re.IGNORECASE)
    return sorted({label.strip().replace("_", " ") for label in text.split(";") if label.strip()})


def _items(root: Path, most: int) -> list[Item]:
    path = one_table(root, (".json", ".jsonl"))
    labels = sorted({label for found in OPENAQA.read(path) for label in truths(found.example.answer or "")})

    def make(example: Example) -> Item:
        truth = truths(example.answer or "")
        if not truth or len(truth) > most:
            mend = "an empty label" if not truth else "several labels: score this file by task ltu-json-tags"
            raise PalError(f"{path}: {example.id} has {mend}")
        return Item.of(example, truth=truth, choices=labels)

    return importer_items(OPENAQA, path, ALL, make)


TASKS = (
    Task("ltu-json", "classify", _NEEDS, _FROM, lambda place: _items(place.root, 1), (ALL,), ("match",), takes_file=True),
    Task("ltu-json-tags", "tags", f"{_NEEDS}; several labels an item", _FROM, lambda place: _items(place.root, 10**6), (ALL,),
         ("match",), takes_file=True),
)  # fmt: skip
