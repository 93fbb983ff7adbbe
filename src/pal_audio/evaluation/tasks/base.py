"""What tasks share: what one is, and how an importer's examples become items.

A task reads its set through the importer of `data/importers/`, so that each official layout is known once. It adds what
to ask, what may be answered, and what the answer is judged by.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pal_audio.data.importers.base import Importer
from pal_audio.data.importers.base import Item as Imported
from pal_audio.data.manifest import Example, read_manifest
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item, Kind, Method

ALL = "all"
# LTU's one instruction for every set whose labels are then matched; spelled so in its evaluation files.
LTU_PROMPT = "Close-ended question: Write an audio caption describing the sound."


@dataclass(frozen=True)
class Place:
    """Where a task's set lies: ROOT, the split of it, and folders outside ROOT that a manifest's sound may lie in."""

    root: Path
    split: str
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task of the registry.

    Attributes:
        name: as in `--tasks`.
        kind: how answers are judged; see `scoring.py`.
        needs, archives: the layout under ROOT, and where it comes from.
        read: items of a split of the set in ROOT; raises PalError where the layout is not there or the split is empty.
        splits: those that there are; the first is the default, which published scores are taken on.
        methods: how answers are got by default.
        prompt: the question; None = each item's own.
        max_new_tokens: of a generated answer.
        takes_file: ROOT may be one file.
        normaliser: of transcripts; "english" writes number words as digits, so strings of digits are not for it.
        version: to be raised when the same files would give other items or another judgement.
    """

    name: str
    kind: Kind
    needs: str
    archives: str
    read: Callable[[Place], list[Item]]
    splits: tuple[str, ...] = ("test",)
    methods: tuple[Method, ...] = ("generate",)
    prompt: str | None = None
    max_new_tokens: int = 32
    takes_file: bool = False
    normaliser: str = "basic"
    version: int = 1

    def prompt_of(self, method: Method) -> str | None:
        """The question of a method: what is matched is a caption, which LTU's instruction asks for."""
        return LTU_PROMPT if method == "match" and self.prompt is not None else self.prompt

    def items(self, place: Place) -> list[Item]:
        """Items in the order of the set's files.

        Raises:
            PalError: ROOT or the split is not there, or holds nothing.
        """
        root, split = place.root, place.split
        if split not in self.splits:
            raise PalError(f"--split {self.name}={split}: there are {', '.join(self.splits)}")
        if not root.is_dir() and not (self.takes_file and root.is_file()):
            what = "file or folder" if self.takes_file else "folder"
            raise PalError(f"{self.name}: no such {what} {root}; it needs {self.needs} (from {self.archives})")
        items = self.read(place)
        if not items:
            raise PalError(f"{self.name}: nothing of split {split!r} in {root}")
        twice = _first_twice([item.id for item in items])
        if twice is not None:
            raise PalError(f"{self.name}: two items of {root} have the id {twice!r}")
        return items


def importer_items(importer: Importer, root: Path, split: str, make: Callable[[Example], Item]) -> list[Item]:
    """Items of an importer's split (or of `ALL`); what the importer would leave out stays, with its fault."""
    inside = (root if root.is_dir() else root.parent).resolve()
    return [_checked(found, make(found.example), inside) for found in importer.read(root) if split in (ALL, found.split)]


def manifest_items(place: Place, make: Callable[[Example], Item]) -> list[Item]:
    """Items of the manifest that ROOT is, or of the only one in it; sound that is not there stays, with its fault."""
    manifest = one_table(place.root, (".jsonl",))
    return [with_sound(make(example)) for example in read_manifest(manifest, place.roots)]


def with_sound(item: Item) -> Item:
    """The item, with a fault where a sound file is not there."""
    missing = next((part.path for clip in item.clips for part in clip if not os.path.isfile(part.path)), None)
    if missing is None or item.fault:
        return item
    return item.model_copy(update={"fault": f"no such audio file {missing}"})


def one_table(root: Path, suffixes: Sequence[str]) -> Path:
    """ROOT where it is a file, else the only file of a kind in it.

    Raises:
        PalError: there is none, or more than one.
    """
    if root.is_file():
        return root
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    if len(found) != 1:
        said = "none" if not found else f"{len(found)}, the first is {found[0].name}"
        raise PalError(f"{root} should hold one {' or '.join(suffixes)} file and has {said}; name the file itself")
    return found[0]


def groups_of(meta: dict[str, Any], *keys: str) -> dict[str, str]:
    """Breakdown by those keys of `meta` that are there."""
    return {key: str(meta[key]) for key in keys if meta.get(key) not in (None, "")}


def _checked(found: Imported, item: Item, inside: Path) -> Item:
    if found.fault or not all(truth.strip() for truth in item.truth):
        return item.model_copy(update={"fault": found.fault or "empty answer"})
    for clip in item.clips:
        for part in clip:
            if not Path(part.path).resolve().is_relative_to(inside):
                return item.model_copy(update={"fault": f"audio path {part.path!r} leaves ROOT"})
    return with_sound(item)


def _first_twice(ids: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            return id
        seen.add(id)
    return None
