"""Examples streamed out of tar shards: which make the batch of a step is a function of (sources, seed, step) alone.

An epoch is one sequence of positions, known before a byte of sound is read: each source's shards in an order drawn from (seed,
epoch), the sources spread evenly among each other. The sequence is cut into blocks of `shuffle_buffer` examples; a block is
permuted, grouped by length in pools of several batches, and its batches are permuted, all drawn from (seed, epoch, block). So a
stream can begin at any step: it reads that step's block, passing over the headers before it. While a block's batches
go out, the next block comes in, as many examples as went out: the memory holds the sound of one block.

A sliding buffer, as `datasets` has it, mixes a little further, but what it holds at a step depends on all that it read before.
Batches go on from an epoch into the next, so that each is full. Source: our choice.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from pal_audio.audio import stated_seconds
from pal_audio.data.manifest import Example
from pal_audio.data.shard_reader import Shard, ShardReader
from pal_audio.data.shard_source import ShardSource
from pal_audio.errors import PalError

_POOL = 8  # batches that are drawn together and sorted by length, so that a batch holds clips of like length
_GUESSED_BYTES_PER_S = 16_000  # of sound whose header is not read: 128 kbit/s


@dataclass
class ShardStream:
    """Batches out of shards, by step.

    Args:
        sources: what an epoch is made of.
        seed: of the order.
        shuffle_buffer: examples whose sound is in memory at once, and among which the order is random. At least the batch size.
        rank, world_size: see `split`.
    """

    sources: Sequence[ShardSource]
    seed: int
    shuffle_buffer: int = 1000
    rank: int = 0
    world_size: int = 1
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _verified: set[str] = field(default_factory=set, repr=False)

    @property
    def num_examples(self) -> int:
        """In an epoch, over all processes."""
        return sum(source.num_examples for source in self.sources)

    def split(self, rank: int, world_size: int) -> ShardStream:
        """The stream of one of several processes: of each batch the examples rank, rank + world_size, ...

        Every process goes through the same order and reads the same shards. So the batch of a step over all processes is the same
        for any number of them, and a run may go on with another number. `datasets.distributed.split_dataset_by_node` gives shards
        to processes instead, by which the order would depend on their number. The price: each process holds a buffer and
        reads every file, though it decodes its part alone.
        """
        assert 0 <= rank < world_size
        return replace(self, rank=rank, world_size=world_size)

    def batches(self, batch_size: int, first_step: int = 0) -> Iterator[list[Example]]:
        """Batches of step `first_step`, the next, and so on without end; the caller closes or drops the iterator.

        Args:
            batch_size: examples over all processes; a multiple of their number.
            first_step: counted from 0.

        Yields:
            `batch_size / world_size` examples that carry their sound. Nothing is decoded.

        Raises:
            PalError: a shard is damaged or not the one of the index, an example lacks its answer or sound, or sizes do not fit.
        """
        if self.shuffle_buffer < batch_size:
            raise PalError(f"shuffle_buffer {self.shuffle_buffer} is smaller than a batch of {batch_size}; raise it")
        if batch_size % self.world_size:
            raise PalError(f"a batch of {batch_size} cannot be shared by {self.world_size} processes; choose a multiple")
        with contextlib.closing(_Cursors(self)) as cursors:
            start, stop, seed = self._block(first_step * batch_size, batch_size)
            block = [cursors.read(position) for position in range(start, stop)]
            gone = first_step - start // batch_size
            while True:
                ready = deque(_grouped(block, batch_size, np.random.default_rng(seed)))
                start, stop, seed = self._block(stop, batch_size)
                ahead = (cursors.read(position) for position in range(start, stop))
                block = []
                for _ in range(gone):
                    ready.popleft()
                    block += islice(ahead, batch_size)
                while ready:
                    yield ready.popleft()[self.rank :: self.world_size]
                    block += islice(ahead, batch_size)
                block += ahead
                gone = 0

    def place(self, position: int) -> tuple[int, int, int]:
        """Source, visit and position in the shard, of a position in the sequence of all epochs."""
        epoch, number = divmod(position, self.num_examples)
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a block may lie in two
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._sequence(epoch)
        source, visit, place = self._epochs[epoch][number]
        return int(source), int(visit), int(place)

    def opened(self, shard: Shard) -> ShardReader:
        """A reader of a shard, whose checksum is looked at the first time."""
        reader = ShardReader(shard, verify=shard.path not in self._verified)
        self._verified.add(shard.path)
        return reader

    def _sequence(self, epoch: int) -> np.ndarray:
        """(N, 3) int32: source, visit, position of every example of an epoch."""
        parts, keys = [], []
        for number, source in enumerate(self.sources):
            order = np.random.default_rng([6, self.seed, epoch, number]).permutation(len(source.visits))
            visits = [np.full(len(source.visits[at].positions), at) for at in order]
            columns = np.concatenate(visits), np.concatenate([source.visits[at].positions for at in order])
            num = len(columns[0])
            parts.append(np.stack([np.full(num, number), *columns], axis=1).astype(np.int32))
            keys.append((np.arange(num) + 0.5) / num)
        return np.concatenate(parts)[np.argsort(np.concatenate(keys), kind="stable")]

    def _block(self, position: int, batch_size: int) -> tuple[int, int, list[int]]:
        """Start, stop and seed of the block that holds a position, which begins a batch. Blocks begin anew in every epoch."""
        num, size = self.num_examples, self.shuffle_buffer // batch_size * batch_size
        epoch = position // num
        first, last = (-(-(epoch + more) * num // batch_size) * batch_size for more in (0, 1))
        number = (position - first) // size
        start = first + number * size
        return start, min(start + size, last), [7, self.seed, epoch, number]


@dataclass(frozen=True)
class StreamBatches:
    """A stream's batches of one size, as the training loop takes them."""

    stream: ShardStream
    batch_size: int

    def from_step(self, first: int) -> Iterator[list[Example]]:
        """The batches of steps `first`, `first + 1`, ..., without an end."""
        return self.stream.batches(self.batch_size, first)


class _Cursors:
    """One open shard a source, read forwards as long as the order goes forwards."""

    def __init__(self, stream: ShardStream) -> None:
        self._stream = stream
        self._open: dict[int, tuple[int, ShardReader]] = {}

    def read(self, position: int) -> Example:
        number, visit, place = self._stream.place(position)
        source = self._stream.sources[number]
        held = self._open.get(number)
        if held is None or held[0] != visit or held[1].position > place:
            if held is not None:
                held[1].close()
            held = self._open[number] = (visit, self._stream.opened(source.visits[visit].shard))
        sample = held[1].read(place)
        example = sample.example(source.question)
        if not example.answer:
            raise sample.fault("no answer of the assistant")
        return example

    def close(self) -> None:
        for _, reader in self._open.values():
            reader.close()
        self._open.clear()


def _grouped(block: list[Example], batch_size: int, rng: np.random.Generator) -> list[list[Example]]:
    """A block's batches in a random order, each of clips of like length."""
    lengths_N = np.array([_seconds(example) for example in block])
    order = rng.permutation(len(block))
    batches = []
    for start in range(0, len(order), batch_size * _POOL):
        pool = order[start : start + batch_size * _POOL]
        pool = pool[np.argsort(lengths_N[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [[block[index] for index in batches[number]] for number in rng.permutation(len(batches))]


def _seconds(example: Example) -> float:
    """Length of an example's clips as it is stated."""
    total = 0.0
    for part in example.audio:
        end_s = part.end_s
        if end_s is None:
            content = part.content or b""
            stated_s = stated_seconds(content)
            end_s = len(content) / _GUESSED_BYTES_PER_S if stated_s is None else stated_s
        total += max(0.0, end_s - (part.start_s or 0.0))
    return total
