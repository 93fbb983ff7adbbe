"""`pal data shard`: a manifest and its sound as tar shards in WebDataset's form, for streaming.

    OUT/000000.tar    KEY.json is the manifest line, its paths the names of KEY.0.flac, KEY.1.wav, ... beside it
    OUT/shards.json   see `shard_index`; written last, so it says that the folder is whole

KEY is the number of the example in OUT. Examples are dealt to shards in a random order, since a stream mixes only what its buffer
holds. The same manifest, sound, size and seed give the same bytes. Source: our choice, names aside.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np

from pal_audio.data.folder import LOCK, locked, write_bytes
from pal_audio.data.manifest import Example
from pal_audio.data.shard_index import FORMAT, INDEX, UNFINISHED, ShardEntry, ShardIndex
from pal_audio.data.shard_reader import MAX_EXAMPLE_BYTES, MAX_TEXT_BYTES
from pal_audio.data.shard_sample import SOUNDS
from pal_audio.errors import PalError

_TEMPORARY = ".shard.tmp"
_OURS = re.compile(r"\d{6,}\.tar|\.shard\.tmp|\.shards\.json\.tmp")


def write_shards(
    examples: Sequence[Example],
    out: str | os.PathLike[str],
    shard_bytes: int = 256 * 10**6,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> ShardIndex:
    """Write examples and their sound as shards.

    Args:
        examples: with absolute paths, as `read_manifest` gives them. Sound files are copied byte by byte.
        out: new or empty folder; with `overwrite` the shards in it are replaced, other files stay.
        shard_bytes: a shard is closed when it reaches this size.
        seed: of the order.
        progress: called with examples done and in all.

    Returns:
        The index that was written.

    Raises:
        PalError: `out` holds something or is being written, a sound file is not there, or an example is over a limit.
    """
    folder = Path(out)
    _refuse(folder, overwrite)
    _check_sounds(examples)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        write_bytes(folder / UNFINISHED, b"")
        (folder / INDEX).unlink(missing_ok=True)  # first: without it the folder is not whole
        for path in list(folder.iterdir()):
            if _OURS.fullmatch(path.name):
                path.unlink()
        entries: list[ShardEntry] = []
        order = [int(number) for number in np.random.default_rng([8, seed]).permutation(len(examples))]
        done = 0
        while done < len(order):
            name = f"{len(entries):06d}.tar"
            num, num_bytes, sha256 = _write(folder, name, [examples[number] for number in order], done, shard_bytes, progress)
            entries.append(ShardEntry(name=name, num_examples=num, bytes=num_bytes, sha256=sha256))
            done += num
        index = ShardIndex(format=FORMAT, num_examples=len(examples), shards=entries)
        write_bytes(folder / INDEX, (index.model_dump_json(indent=1) + "\n").encode())
        (folder / UNFINISHED).unlink()
    return index


def _refuse(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise PalError(f"OUT {folder} is not a folder")
    there = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK) if folder.is_dir() else []
    ours = INDEX in there or UNFINISHED in there
    if there and not overwrite:
        state = "holds shards that are not finished" if UNFINISHED in there else f"is not empty ({there[0]}, ...)"
        raise PalError(f"OUT {folder} {state}; choose a new folder, or replace with --overwrite")
    if not ours and any(name.endswith(".tar") for name in there):
        raise PalError(f"OUT {folder} holds .tar files that `pal data shard` did not write; choose another folder")


def _check_sounds(examples: Sequence[Example]) -> None:
    if not examples:
        raise PalError("there is no example to write")
    missing = [name for name in dict.fromkeys(part.path for item in examples for part in item.audio) if not Path(name).is_file()]
    if missing:
        raise PalError(f"{len(missing)} sound files are not there, the first is {missing[0]}")


def _write(
    folder: Path,
    name: str,
    ordered: list[Example],
    first: int,
    shard_bytes: int,
    progress: Callable[[int, int | None], None] | None,
) -> tuple[int, int, str]:
    """Write one shard from example `first` on; its number of examples, bytes and SHA-256."""
    number = first
    with open(folder / _TEMPORARY, "wb") as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            while number < len(ordered) and (number == first or tar.offset < shard_bytes):
                for member, content in _files(ordered[number], f"{number:08d}"):
                    header = tarfile.TarInfo(member)
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
                tar.members = []  # tarfile would keep every header
                number += 1
                if progress is not None:
                    progress(number, len(ordered))
        file.flush()
        os.fsync(file.fileno())
    os.replace(folder / _TEMPORARY, folder / name)
    return number - first, hashed.num_bytes, hashed.digest.hexdigest()


def _files(example: Example, key: str) -> list[tuple[str, bytes]]:
    """Names and contents of an example's files; a sound that it uses twice is there once."""
    copy = example.model_copy(deep=True)
    names: dict[str, str] = {}
    sounds = []
    for part in copy.audio:
        if part.path not in names:
            ending = PurePath(part.path).suffix.removeprefix(".").lower()
            names[part.path] = f"{key}.{len(names)}.{ending if ending in SOUNDS else 'bin'}"
            sounds.append((names[part.path], _content(part.path)))
        part.path = names[part.path]
    try:
        line = copy.model_dump_json(exclude_none=True).encode()
    except ValueError as error:  # text that is no Unicode, `meta` too deep
        raise PalError(f"example {example.id!r} cannot be written as JSON ({' '.join(str(error).split())})") from error
    num_bytes = len(line) + sum(len(content) for _, content in sounds)
    if len(line) > MAX_TEXT_BYTES or num_bytes > MAX_EXAMPLE_BYTES:
        limits = f"{MAX_TEXT_BYTES} bytes of text and {MAX_EXAMPLE_BYTES} in all"
        raise PalError(f"example {example.id!r}: over the limit of {limits}; cut or compress its sound")
    return [(f"{key}.json", line), *sounds]


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_EXAMPLE_BYTES + 1)
    except OSError as error:
        raise PalError(f"{path}: cannot be read: {error.strerror}") from error


class _Hashed:
    """A file to write to, with the hash and the number of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest, self.num_bytes = hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.num_bytes += len(content)
        return self._file.write(content)
