"""Questions with exact short answers: composed scenes of `pal data mix`, and any manifest. Each is asked in its own words."""

from __future__ import annotations

from dataclasses import replace

from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import ALL, Place, Task, manifest_items


def _item(example: Example) -> Item:
    if not example.answer:
        raise PalError(f"{example.id}: no answer to compare with; it is the assistant's message")
    return Item.of(example, truth=[example.answer], groups={"task": example.task} if example.task else {})


def _scenes(place: Place) -> list[Item]:
    root, split = place.root, place.split
    manifest = root / f"{split}.jsonl"
    if not (root / "mix.json").is_file() or not manifest.is_file():
        raise PalError(
            f"scenes: {root} is no finished folder of `pal data mix` (mix.json and {split}.jsonl); "
            "a manifest of your own is for task answers"
        )
    return manifest_items(replace(place, root=manifest), _item)


TASKS = (
    Task("scenes", "exact", "a folder of `pal data mix`", "`pal data mix quickstart FOLDER`", _scenes, ("test", "train")),
    Task("answers", "exact", "a manifest (.jsonl) with exact short answers", "your own",
         lambda place: manifest_items(place, _item), (ALL,), takes_file=True),
)  # fmt: skip
