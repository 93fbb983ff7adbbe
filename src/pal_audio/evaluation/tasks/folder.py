"""One's own sounds in a folder with one sub-folder a class."""

from __future__ import annotations

from pal_audio.data.importers.base import SUFFIXES, asked
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import ALL, Place, Task, with_sound

_PROMPT = "What sound is this?"


def _items(place: Place) -> list[Item]:
    root = place.root
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise PalError(f"folder: {root} has {len(folders)} sub-folders; it needs one for each class, two at least")
    labels = [folder.name.replace("_", " ") for folder in folders]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise PalError(f'folder: two sub-folders stand for {twice!r} ("_" is a space); join them')
    items = []
    for folder, label in zip(folders, labels, strict=True):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                name = path.relative_to(root).as_posix()
                example = asked(name, [path], _PROMPT, label, "classify")
                items.append(with_sound(Item.of(example, truth=[label], choices=labels)))
    return items


TASKS = (
    Task("folder", "classify", "ROOT/CLASS/*.wav, one folder a class", "your own", _items, (ALL,),
         ("rank", "generate"), _PROMPT),
)  # fmt: skip
