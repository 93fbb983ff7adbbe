"""Manifests, shards of ours and shards as others write them, all small."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pal_audio.data.manifest import Example, read_manifest
from pal_audio.data.shard_index import find_shards
from pal_audio.data.shard_source import ShardSource, weighted
from pal_audio.data.shard_writing import write_shards
from pal_audio.data.shards import ShardStream

RATE_HZ = 8_000


def sound(seed: int, seconds: float = 0.2, form: str = "FLAC") -> bytes:
    file = io.BytesIO()
    wav_S = 0.1 * np.random.default_rng(seed).standard_normal(int(RATE_HZ * seconds))
    soundfile.write(file, wav_S, RATE_HZ, format=form)
    return file.getvalue()


def line(name: str, *paths: str, **changes: Any) -> dict[str, Any]:
    parts = [{"type": "audio", "path": path, **changes} for path in paths]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": "what sound is this?"}]}
    return {"id": name, "messages": [asked, {"role": "assistant", "content": "a bell"}]}


def manifest(folder: Path, num: int, name: str = "m") -> list[Example]:
    """Examples of a manifest of clips of seven lengths, absolute paths."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num):
        (folder / f"{name}{number}.flac").write_bytes(sound(number, 0.1 + 0.05 * (number * 5 % 7)))
        lines.append(json.dumps(line(f"{name}-{number}", f"{name}{number}.flac")))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return read_manifest(folder / f"{name}.jsonl")


def written(folder: Path, num: int, shard_bytes: int = 20_000, name: str = "m") -> list[Example]:
    """Shards in `folder`, and the examples that were written."""
    examples = manifest(folder.parent / "sounds", num, name)
    write_shards(examples, folder, shard_bytes)
    return examples


def tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return path


def foreign(num: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Files of examples as others write them: sound before text, a text file or a JSON with a caption."""
    files = []
    for number in range(start, start + num):
        files.append((f"{number:04d}.flac", sound(number)))
        text = (f"{number:04d}.txt", f"sound {number}\n".encode())
        files.append(text if number % 2 else (f"{number:04d}.json", json.dumps({"text": [f"sound {number}", "b"]}).encode()))
    return files


def source(folder: Path | str, title: str = "a", weight: float = 1.0, question: str | None = "what?") -> ShardSource:
    return ShardSource(title, weighted(find_shards(str(folder)), weight, np.random.default_rng(0)), question)


def stream(*sources: ShardSource, seed: int = 0, shuffle_buffer: int = 12) -> ShardStream:
    return ShardStream(sources, seed, shuffle_buffer)


def ids(batches: Iterator[list[Example]], num: int) -> list[list[str]]:
    return [[example.id for example in batch] for batch in itertools.islice(batches, num)]
