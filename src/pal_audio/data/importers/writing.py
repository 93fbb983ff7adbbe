"""From a set's items to manifests in a folder.

    OUT/{train,val,test}.jsonl   those splits that the set has
    OUT/missing.txt              id and reason of what was left out, one a line; absent when nothing was
    OUT/import.json              what was imported and how much of it; written last, so it says that the folder is whole

Manifests point at the originals by relative paths. Nothing is copied, and nothing is written under ROOT.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

import pal_audio
from pal_audio.config import lookup, one_line
from pal_audio.data.folder import LOCK, locked
from pal_audio.data.importers.base import SPLITS, Importer, Item
from pal_audio.data.manifest import Example, manifest_line, write_text
from pal_audio.errors import PalError

MISSING, SUMMARY = "missing.txt", "import.json"
OURS = (*(f"{split}.jsonl" for split in SPLITS), MISSING, SUMMARY)
_EVERY = 500  # items between two reports of progress


@dataclass(frozen=True)
class Imported:
    """What an import wrote: examples by split, and items left out by reason."""

    name: str
    root: str
    version: str
    num_examples: dict[str, int]
    num_left_out: dict[str, int]


def import_set(
    importers: Mapping[str, Importer],
    name: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Imported:
    """Write the manifests of a set.

    Args:
        importers: Those there are, by name.
        name: A key of it.
        root: The set as its archives unpack.
        out: New or empty folder outside of the set; with `overwrite` what an import left there is replaced, other files stay.
        progress: Called with the number of items done, and None for how many there are.

    Raises:
        PalError: The name, ROOT or OUT is wrong, the layout is not the set's, or no item has its audio.
    """
    importer = known(importers, name)
    source, folder = Path(root), Path(out)
    if not source.is_dir() and not (importer.takes_file and source.is_file()):
        raise PalError(
            f"ROOT {source}: no such {'file or folder' if importer.takes_file else 'folder'}; {name} needs {importer.needs}"
        )
    inside = (source if source.is_dir() else source.parent).resolve()
    if folder.resolve().is_relative_to(inside):
        raise PalError(f"OUT {folder} lies in the set's own folder {inside}, where nothing is written; choose one outside of it")
    _refuse_full(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        return _written(importer, source, inside, folder.resolve(), progress)


def known(importers: Mapping[str, Importer], name: str) -> Importer:
    """Look an importer up.

    Raises:
        PalError: There is none of that name; the nearest is given.
    """
    return lookup(importers, name, f"no set is named {name!r}")


def _refuse_full(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise PalError(f"OUT {folder} is not a folder")
    left_by_us = {LOCK, *(f".{name}.tmp" for name in OURS)}  # the latter by an import that was killed
    there = [entry.name for entry in folder.iterdir() if entry.name not in left_by_us] if folder.is_dir() else []
    if there and not overwrite:
        raise PalError(f"OUT {folder} is not empty ({sorted(there)[0]}, ...); choose a new folder, or replace with --overwrite")


def _written(
    importer: Importer, source: Path, inside: Path, folder: Path, progress: Callable[[int, int | None], None] | None
) -> Imported:
    num_examples: Counter[str] = Counter()
    num_left_out: Counter[str] = Counter()
    seen: set[str] = set()
    first_left_out = ""
    with _temporaries(folder) as open_temporary:
        number = 0
        for number, item in enumerate(_read(importer, source), start=1):
            example = item.example
            if example.id in seen:
                raise PalError(f"{source}: two items have the id {example.id!r}")
            seen.add(example.id)
            reason, detail = _fault(item, inside)
            if reason:
                num_left_out[reason] += 1
                line = " ".join(f"{reason}: {detail}".split())
                first_left_out = first_left_out or line
                open_temporary(MISSING).write(f"{' '.join(example.id.split())}\t{line}\n")
            else:
                num_examples[item.split] += 1
                open_temporary(f"{item.split}.jsonl").write(_line(example, folder, f"{source}, item {number}"))
            if progress is not None and number % _EVERY == 0:
                progress(number, None)
        if progress is not None:
            progress(number, number)
        if not num_examples:
            raise PalError(f"{source}: none of {number} items can be used" + (f"; the first: {first_left_out}" if number else ""))
    # Counts are complete and the manifests are in place: only now is the folder called whole.
    by_split = {split: num_examples[split] for split in SPLITS if num_examples[split]}
    result = Imported(importer.name, str(inside), pal_audio.__version__, by_split, dict(num_left_out))
    write_text(folder / SUMMARY, json.dumps(asdict(result), indent=2) + "\n")
    return result


def _read(importer: Importer, source: Path) -> Iterator[Item]:
    """Yield a set's items; what makes no example, and no importer looks for itself, is named by the item's number."""
    number = 0
    try:
        for item in importer.read(source):
            number += 1
            yield item
    except ValidationError as error:
        raise PalError(f"{source}, item {number + 1}: {one_line(error)}") from None


def _line(example: Example, folder: Path, place: str) -> str:
    try:
        return manifest_line(example, folder)
    except (PydanticSerializationError, RecursionError) as error:  # text that is no Unicode, `meta` too deep
        raise PalError(f"{place}: cannot be written as JSON ({' '.join(str(error).split())})") from error


def _fault(item: Item, inside: Path) -> tuple[str, str]:
    """Say why an item cannot be used, or make its audio paths the resolved ones."""
    if item.fault:
        return item.fault, item.example.id
    if any(not message.text.strip() for message in item.example.messages if message.role == "assistant"):
        return "empty answer", item.example.id
    for part in item.example.audio:
        try:
            resolved = Path(part.path).resolve()
            is_file = resolved.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a null character
            return "no such audio file", f"{part.path!r} ({error})"
        if not resolved.is_relative_to(inside):
            return "audio path leaves ROOT", part.path
        if not is_file:
            return "no such audio file", part.path
        part.path = str(resolved)
    return "", ""


@contextlib.contextmanager
def _temporaries(folder: Path) -> Iterator[Callable[[str], TextIO]]:
    """Open files under temporary names on first use; at the end all take their place, after an error none does."""
    files: dict[str, TextIO] = {}

    def opened(name: str) -> TextIO:
        if name not in files:
            files[name] = open(folder / f".{name}.tmp", "w", encoding="utf-8", newline="\n", errors="backslashreplace")  # noqa: SIM115
        return files[name]

    try:
        yield opened
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name in reversed(OURS):  # the summary first: without it the folder is not whole
            (folder / name).unlink(missing_ok=True)
        for name in files:
            os.replace(folder / f".{name}.tmp", folder / name)
    finally:
        for name, file in files.items():
            file.close()
            (folder / f".{name}.tmp").unlink(missing_ok=True)
