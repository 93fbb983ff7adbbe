"""Streaming out of tar shards against reading a manifest's files: 2,000 FLACs of 1 s, examples a second.

    OMP_NUM_THREADS=1 python benchmarks/shards.py

Files were just written, so both read from memory: what is compared is the price in Python, not that of a disk or a network,
for which shards are made. "decoded" takes every clip through `load_audio` too, as training does.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import soundfile

from pal_audio.audio import load_audio
from pal_audio.data.manifest import Example, read_manifest
from pal_audio.data.shard_index import find_shards
from pal_audio.data.shard_source import ShardSource, weighted
from pal_audio.data.shard_writing import write_shards
from pal_audio.data.shards import ShardStream

NUM_CLIPS, BATCH_SIZE, RATE_HZ, TIMES = 2_000, 32, 16_000, 3


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_clips(folder)
        started = time.perf_counter()
        examples = read_manifest(manifest)
        print(f"read the manifest {time.perf_counter() - started:.2f} s")
        started = time.perf_counter()
        index = write_shards(examples, folder / "shards", 10 * 10**6)
        print(f"write {len(index.shards)} shards {time.perf_counter() - started:.2f} s")
        order = [examples[number] for number in np.random.default_rng(0).permutation(NUM_CLIPS)]

        def direct() -> Iterable[bytes]:
            return (Path(part.path).read_bytes() for example in order for part in example.audio)

        def streamed() -> Iterable[bytes]:
            source = ShardSource("a", weighted(find_shards(str(folder / "shards")), 1, np.random.default_rng(0)))
            batches = ShardStream([source], 0).batches(BATCH_SIZE)
            return (part.content or b"" for example in islice(chain.from_iterable(batches), NUM_CLIPS) for part in example.audio)

        for what, sounds in (("files", direct), ("shards", streamed)):
            report(f"{what}, bytes", partial(_total, sounds, len))
            report(f"{what}, decoded", partial(_total, sounds, lambda content: len(load_audio(content))))
        source = ShardSource("a", weighted(find_shards(str(folder / "shards")), 1, np.random.default_rng(0)))
        for step in (0, 10_000 // BATCH_SIZE - 5):
            started = time.perf_counter()
            next(ShardStream([source], 0).batches(BATCH_SIZE, step))
            print(f"first batch at step {step} {time.perf_counter() - started:.2f} s")


def _total(sounds: Callable[[], Iterable[bytes]], measure: Callable[[bytes], int]) -> int:
    return sum(measure(content) for content in sounds())


def report(what: str, run: Callable[[], int]) -> None:
    rates = []
    for _ in range(TIMES):
        started = time.perf_counter()
        run()
        rates.append(NUM_CLIPS / (time.perf_counter() - started))
    print(what, *(f"{rate:,.0f}/s" for rate in rates))


def write_clips(folder: Path) -> Path:
    lines = []
    for number in range(NUM_CLIPS):
        wav_S = 0.1 * np.random.default_rng(number).standard_normal(RATE_HZ)
        soundfile.write(folder / f"{number}.flac", wav_S, RATE_HZ)
        parts = [{"type": "audio", "path": f"{number}.flac"}, {"type": "text", "text": "what sound is this?"}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a bell"}]
        lines.append(Example.model_validate({"id": str(number), "messages": messages}).model_dump(exclude_none=True))
    path = folder / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


if __name__ == "__main__":
    main()
