"""From the sources of a mix to its catalogue, and the guard that keeps training and test apart."""

from __future__ import annotations

import difflib
import hashlib
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pal_audio.data.importers import IMPORTERS
from pal_audio.data.importers.tables import csv_rows
from pal_audio.data.manifest import AudioPart, read_manifest
from pal_audio.data.mixing.catalogue import SPLITS, Catalogue, Clip
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.mixing.sound_sources import (
    ImportedSource,
    ManifestSource,
    RecordedSource,
    SoundSource,
    SplitRule,
    TableSource,
    procedural_label,
)
from pal_audio.data.sounds import KINDS, Split
from pal_audio.errors import PalError


@dataclass(frozen=True)
class _Found:
    """What a source says of one clip, before anything is chosen."""

    split: str
    name: str
    audio: AudioPart
    answer: str
    meta: dict[str, Any]


def read_catalogue(config: MixConfig) -> Catalogue:
    """Read every source of a mix.

    Raises:
        PalError: a root or manifest is not there or wrong, a label or key is unknown, or training and test share a clip.
    """
    config.check_places()
    clips: dict[Split, list[Clip]] = {"train": [], "test": []}
    nouns: dict[str, str] = {}
    clauses: dict[str, str] = {}
    for number, source in enumerate(config.resolved().sources):
        try:
            for split, clip in _clips(source, number):
                clips[split].append(clip)
            known = {clip.label for split in SPLITS for clip in clips[split] if clip.source == number}
            for name in (*(source.labels or ()), *source.nouns, *source.clauses):
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known)[:20]) or 'none'}"
                    raise PalError(f"no clip has the label {name!r}; {mend}")
            if not known:
                raise PalError("no clip of it trains or tests")
        except PalError as error:
            raise PalError(f"data.sources[{number}] ({source.title}): {error}") from None
        nouns |= source.nouns
        clauses |= source.clauses
    check_disjoint(clips["train"], clips["test"])
    return Catalogue(clips, [source.weight for source in config.sources], nouns, clauses)


def check_disjoint(train: Sequence[Clip], test: Sequence[Clip]) -> None:
    """The guard: no recording that trains may test.

    Recordings are the same if their files are (by path, or by content), unless both clips are stretches that do not meet; or if
    their source's `split.group` says so.

    Raises:
        PalError: naming the first two that are the same.
    """
    by_file: dict[str, list[Clip]] = {}
    by_group: dict[tuple[int, str], Clip] = {}
    for clip in train:
        if clip.path:
            by_file.setdefault(clip.path, []).append(clip)
        if clip.group:
            by_group.setdefault((clip.source, clip.group), clip)
    sizes = {_size(path) for path in {clip.path for clip in test if clip.path}}
    by_glance: dict[tuple[int, int], list[str]] = {}
    for path in by_file:
        if _size(path) in sizes:  # other files cannot be copies, and are not read
            by_glance.setdefault(_glance(path), []).append(path)
    digest = cache(_digest)
    for clip in test:
        paths = [path for path in by_glance.get(_glance(clip.path), ()) if digest(path) == digest(clip.path)] if clip.path else []
        same = [other for path in paths for other in by_file[path] if _meet(other, clip)]
        if clip.group and (clip.source, clip.group) in by_group:
            same.append(by_group[clip.source, clip.group])
        if same:
            what = f"{same[0].id} trains and {clip.id} tests"
            raise PalError(f"{what}, and they are the same recording; mend `split`, `hold_out` or the sources")


def _meet(one: Clip, other: Clip) -> bool:
    ends = [float("inf") if clip.end_s is None else clip.end_s for clip in (one, other)]
    return (one.start_s or 0.0) < ends[1] and (other.start_s or 0.0) < ends[0]


def _size(path: str) -> int:
    return Path(path).stat().st_size


def _glance(path: str) -> tuple[int, int]:
    """Size of a file, and a checksum of its middle."""
    size = _size(path)
    with open(path, "rb") as file:
        file.seek(size // 2)
        return size, zlib.crc32(file.read(4096))


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _clips(source: SoundSource, number: int) -> Iterator[tuple[Split, Clip]]:
    if not isinstance(source, RecordedSource):
        for kind in KINDS:
            label = procedural_label(kind)
            if source.labels is None or label in source.labels:
                for split in SPLITS:
                    yield split, Clip(f"procedural/{kind}", number, label, source.category, kind=kind)
        return
    found = [item for item in _found(source) if source.labels is None or _label(item, source) in source.labels]
    gone = [item.audio.path for item in found if not Path(item.audio.path).is_file()]
    if gone:
        said = f"data.sources[{number}]: {len(gone)} files are not there and left out, the first is {gone[0]}"
        warnings.warn(said, stacklevel=2)
    there = [item for item in found if Path(item.audio.path).is_file()]
    values = _values(source.split, {item.split for item in there})
    for item in there:
        held_out = any(str(_value(item, key)) in map(str, wanted) for key, wanted in source.hold_out.items())
        for split in SPLITS:
            if _belongs(item, split, source.split, values) and not (held_out and split == "train"):
                yield split, _clip(item, source, number, held_out)


def _clip(item: _Found, source: RecordedSource, number: int, held_out: bool) -> Clip:
    pitch = None
    if source.pitch is not None:
        text = str(_value(item, source.pitch))
        if not re.fullmatch(r"\d{1,3}(\.\d+)?", text):
            raise PalError(f"{item.name}: pitch {text!r} is no MIDI number")
        pitch = float(text)
    return Clip(
        id=f"{source.title}/{item.name}",
        source=number,
        label=_label(item, source),
        category=source.category,
        path=item.audio.path,
        start_s=item.audio.start_s,
        end_s=item.audio.end_s,
        pitch=pitch,
        speaker=str(item.meta.get(source.speaker, "")),
        group="" if source.split.group is None else str(_value(item, source.split.group)),
        held_out=held_out,
    )


def _label(item: _Found, source: RecordedSource) -> str:
    text = item.answer if source.label == "answer" else str(_value(item, source.label))
    if not text.strip():
        raise PalError(f"{item.name}: its label ({source.label}) is empty")
    return " ".join(text.replace("_", " ").split())


def _value(item: _Found, key: str) -> Any:
    if key not in item.meta:
        near = difflib.get_close_matches(key, item.meta, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(item.meta) or 'none'}"
        raise PalError(f"{item.name}: no {key!r} is said of it; {mend}")
    return item.meta[key]


def _values(rule: SplitRule, splits: set[str]) -> dict[Split, set[str]]:
    """Which values of `rule.by` are of which split."""
    if rule.train:
        return {"train": {str(value) for value in rule.train}, "test": {str(value) for value in rule.test}}
    return {"train": {"train"}, "test": {"val" if "val" in splits else "test"}}


def _belongs(item: _Found, split: Split, rule: SplitRule, values: dict[Split, set[str]]) -> bool:
    if rule.test_share is not None:
        group = item.audio.path if rule.group is None else str(_value(item, rule.group))
        place = int.from_bytes(hashlib.sha256(Path(group).name.encode()).digest()[:8], "big") / 2**64
        return (place < rule.test_share) == (split == "test")
    return str(item.split if rule.by == "split" else _value(item, rule.by)) in values[split]


def _found(source: RecordedSource) -> Iterator[_Found]:
    if isinstance(source, ImportedSource):
        return _imported(source)
    if isinstance(source, TableSource):
        return _rows(source)
    assert isinstance(source, ManifestSource)
    return _lines(source)


def _imported(source: ImportedSource) -> Iterator[_Found]:
    for item in IMPORTERS[source.type].read(source.root):
        example = item.example
        if item.fault or len(example.meta.get("labels", ())) > 1:  # a clip of several sounds is no event
            continue
        part = example.audio[0]
        part.path = _below(source.root, part.path)
        yield _Found(item.split, Path(part.path).stem, part, example.answer or "", example.meta)


def _rows(source: TableSource) -> Iterator[_Found]:
    table = source.root / source.table
    columns = sorted(set(re.findall(r"{(\w+)}", source.file)) | ({"split"} if source.split.by == "split" else set()))
    needed = [name for name in columns if not (name == "split" and source.split.test_share is not None)]
    for number, row in csv_rows(table, needed):
        name = source.file
        for column in set(re.findall(r"{(\w+)}", source.file)):
            name = name.replace(f"{{{column}}}", row[column])
        if not name.strip() or name.endswith("/"):
            raise PalError(f"{table}, line {number}: the file's name is empty")
        path = _below(source.root, name)
        yield _Found(row.get("split", ""), Path(path).stem, AudioPart(path=path), row.get("answer", ""), dict(row))


def _lines(source: ManifestSource) -> Iterator[_Found]:
    for split, path in (("train", source.train), ("test", source.test)):
        for example in [] if path is None else read_manifest(path, [] if source.root is None else [source.root]):
            if len(example.audio) != 1:
                raise PalError(f"{path}: example {example.id!r} has {len(example.audio)} clips; a source needs one a line")
            yield _Found(split, example.id, example.audio[0], example.answer or "", example.meta)


def _below(root: Path, name: str) -> str:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise PalError(f"{name!r} leads out of {root}")
    return str(path)
