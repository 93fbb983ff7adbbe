"""ESC-50 and ESC-10: which of 50 (10) environmental sounds is it.

All five folds once, as audio LLMs are scored zero-shot; `val` is fold 4 and `test` fold 5 for models that trained on the others.
"""

from __future__ import annotations

import re
from pathlib import Path

from pal_audio.data.importers.base import Importer
from pal_audio.data.importers.esc import ESC10, ESC50
from pal_audio.data.manifest import Example
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import ALL, Place, Task, importer_items

_NAME = re.compile(r"\d+-(?P<clip>[^-]+)-")  # FOLD-CLIP-TAKE-TARGET: several takes are cut from one Freesound clip


def _items(importer: Importer, place: Place) -> list[Item]:
    labels = sorted({found.example.answer or "" for found in importer.read(place.root)})

    def make(example: Example) -> Item:
        named = _NAME.match(Path(example.audio[0].path).name)
        source = named["clip"] if named else example.id
        groups = {"fold": str(example.meta["fold"])}
        return Item.of(example, truth=[example.answer or ""], choices=labels, source=source, groups=groups)

    return importer_items(importer, place.root, place.split, make)


def _task(importer: Importer) -> Task:
    return Task(
        importer.name,
        "classify",
        importer.needs,
        importer.archives,
        lambda place: _items(importer, place),
        (ALL, "train", "val", "test"),
        ("rank", "generate"),
        "What sound is this?",
    )


TASKS = (_task(ESC10), _task(ESC50))
