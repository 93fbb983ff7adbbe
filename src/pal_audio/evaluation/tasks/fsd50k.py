"""FSD50K: which of 200 classes does a clip hold; several may. Each class is scored, mAP is the mean over classes."""

from __future__ import annotations

from pal_audio.data.importers.fsd50k import FSD50K
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import Place, Task, importer_items


def _items(place: Place) -> list[Item]:
    labels = sorted({label for found in FSD50K.read(place.root) for label in found.example.meta["labels"]})
    return importer_items(
        FSD50K,
        place.root,
        place.split,
        lambda example: Item.of(example, truth=sorted(set(example.meta["labels"])), choices=labels),
    )


TASKS = (
    Task(
        "fsd50k", "tags", FSD50K.needs, FSD50K.archives, _items, ("test", "val", "train"), ("match",),
        "Which sounds are in this recording?",
    ),
)  # fmt: skip
