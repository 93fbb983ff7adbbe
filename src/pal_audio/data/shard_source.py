"""Shards to train on, with what is taken out of each in an epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pal_audio.data.manifest import Example
from pal_audio.data.shard_reader import Shard, ShardReader
from pal_audio.errors import PalError


@dataclass(frozen=True, eq=False)
class Visit:
    """Examples that are taken out of a shard when it is read in an epoch: positions in it, ascending."""

    shard: Shard
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Shards to train on.

    Attributes:
        title: what a stage's `sources` calls it.
        visits: of one epoch; `weighted` makes them.
        question: of examples that bring none; see `Sample.example`.
    """

    title: str
    visits: list[Visit]
    question: str | None = None

    @property
    def num_examples(self) -> int:
        """In an epoch, weight applied."""
        return sum(len(visit.positions) for visit in self.visits)

    @property
    def checksum(self) -> str:
        """SHA-256 of what is known of the shards and of what is taken from them: another one gives other batches.

        Sound is in it by the checksums of an index; of shards without one, by name and size alone.
        """
        digest = hashlib.sha256(json.dumps(self.question).encode())
        for visit in self.visits:
            shard = visit.shard
            name = shard.path.rpartition("/")[2]
            digest.update(json.dumps([name, shard.num_examples, shard.bytes, shard.sha256, visit.positions.tolist()]).encode())
        return digest.hexdigest()

    def head(self, num: int) -> list[Example]:
        """The first examples by name of shard, without their sound: to look at, and to make a vocabulary from."""
        examples: list[Example] = []
        for shard in sorted({visit.shard for visit in self.visits}, key=lambda shard: shard.path):
            with ShardReader(shard, verify=False) as reader:
                for position in range(min(shard.num_examples, num - len(examples))):
                    examples.append(reader.read(position, sound=False).example(self.question))
            if len(examples) == num:
                break
        return examples


def weighted(shards: Sequence[Shard], weight: float, rng: np.random.Generator) -> list[Visit]:
    """Every example as often as the whole part of the weight says, and a choice of them once more for its fraction.

    Raises:
        PalError: nothing is left.
    """
    visits = [Visit(shard, np.arange(shard.num_examples)) for shard in shards] * int(weight)
    starts = np.cumsum([0, *(shard.num_examples for shard in shards)])
    chosen = np.sort(rng.permutation(starts[-1])[: round((weight % 1) * int(starts[-1]))])
    for number, shard in enumerate(shards):
        positions = chosen[(chosen >= starts[number]) & (chosen < starts[number + 1])] - starts[number]
        if len(positions):
            visits.append(Visit(shard, positions))
    if not visits:
        raise PalError(f"weight {weight:g} leaves none of {starts[-1]} examples")
    return visits
