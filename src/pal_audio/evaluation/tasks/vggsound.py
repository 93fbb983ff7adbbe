"""VGGSound: which of 309 classes a clip of ten seconds is."""

from __future__ import annotations

from pal_audio.data.importers.vggsound import VGGSOUND
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import Place, Task, importer_items


def _items(place: Place) -> list[Item]:
    labels = sorted({found.example.answer or "" for found in VGGSOUND.read(place.root)})
    return importer_items(
        VGGSOUND,
        place.root,
        place.split,
        lambda example: Item.of(example, truth=[example.answer or ""], choices=labels, source=str(example.meta["youtube_id"])),
    )


TASKS = (
    Task(
        "vggsound", "classify", VGGSOUND.needs, VGGSOUND.archives, _items, ("test", "train"), ("match",),
        "What sound is this?",
    ),
)  # fmt: skip
