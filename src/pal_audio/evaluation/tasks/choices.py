"""Questions with choices: MMAU, MMAR, and any manifest whose examples hold `meta["choices"]`.

The question lists the choices and asks for one of them by its text alone, the one form that the official string rule
always judges rightly. Items of MMAU's `test` have no answer: their answers are written for its server.
"""

from __future__ import annotations

from pal_audio.data.importers.mmar import MMAR
from pal_audio.data.importers.mmau import MMAU
from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item, Method
from pal_audio.evaluation.tasks.base import ALL, Place, Task, groups_of, importer_items, manifest_items

_METHODS: tuple[Method, ...] = ("generate", "rank")


def _mmau(example: Example) -> Item:
    groups = {"task": example.task} | groups_of(example.meta, "difficulty", "category", "sub-category")
    return _item(example, groups)


def _mmar(example: Example) -> Item:
    groups = {"modality": example.task} | groups_of(example.meta, "category", "sub-category")
    return _item(example, groups)


def _own(example: Example) -> Item:
    choices = example.meta.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise PalError(f"{example.id}: meta.choices must be a list of at least two; a question without is for task answers")
    if example.answer is not None and example.answer not in [str(choice) for choice in choices]:
        raise PalError(f"{example.id}: the answer {example.answer!r} is none of its choices")
    groups = groups_of({**example.meta, "task": example.task}, "task", "difficulty", "category", "sub-category")
    return _item(example, groups)


def _item(example: Example, groups: dict[str, str]) -> Item:
    truth = [] if example.answer is None else [example.answer]
    return Item.of(example, truth=truth, choices=[str(choice) for choice in example.meta["choices"]], groups=groups)


def _from_manifest(place: Place) -> list[Item]:
    return manifest_items(place, _own)


TASKS = (
    Task("mmau", "choices", MMAU.needs, MMAU.archives, lambda place: importer_items(MMAU, place.root, place.split, _mmau),
         ("test-mini", "test"), _METHODS),
    Task("mmar", "choices", MMAR.needs, MMAR.archives, lambda place: importer_items(MMAR, place.root, place.split, _mmar),
         ("test",), _METHODS),
    Task("choices", "choices", "a manifest (.jsonl) with meta.choices", "your own", _from_manifest, (ALL,), _METHODS,
         takes_file=True),
)  # fmt: skip
