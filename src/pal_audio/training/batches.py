"""Which examples make the batch of a step: a function of (seed, step), never of what was drawn before.

Each epoch is a permutation; it is cut into pools of several batches, each pool sorted by length, so that a batch holds
examples of like length, and the batches of an epoch are shuffled again. Source: our choice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from pal_audio.data.manifest import Example
from pal_audio.encoders.base import Frames
from pal_audio.errors import PalError

_POOL = 8  # batches that are drawn together and sorted by length
_POOL_OF_BUDGET = 256  # examples of a pool where a budget makes batches of many sizes


@dataclass(frozen=True)
class Size:
    """What an example takes in a batch: seconds of sound, and tokens of text with the slots of its clips; its name for errors."""

    audio_s: float
    num_tokens: int = 0
    name: str = ""


@dataclass(frozen=True)
class Budget:
    """What a batch may hold, padding included: sound is padded to its longest clip, text only where it is not packed."""

    audio_s: float | None = None
    text_tokens: int | None = None
    packed: bool = True

    def holds(self, sizes: Sequence[Size]) -> bool:
        """Whether these examples fit in one batch."""
        audio_s = len(sizes) * max(size.audio_s for size in sizes)
        tokens = [size.num_tokens for size in sizes]
        num_tokens = sum(tokens) if self.packed else len(tokens) * max(tokens)
        return (self.audio_s is None or audio_s <= self.audio_s) and (self.text_tokens is None or num_tokens <= self.text_tokens)


class Batches(Protocol):
    """Training examples, step by step and without an end."""

    def from_step(self, first: int) -> Iterator[list[Example]]:
        """The batches of steps `first`, `first + 1`, ...; those of a step never depend on `first`."""
        ...


class BatchOrder:
    """Numbers of the examples of each step's batch.

    Args:
        sizes: of the examples.
        limit: examples a batch (the last of an epoch may be smaller), or a budget.
        seed: of the order.

    Raises:
        PalError: an example alone is larger than the budget.
    """

    def __init__(self, sizes: Sequence[Size], limit: int | Budget, seed: int) -> None:
        self.sizes = list(sizes)
        self.limit = min(limit, len(sizes)) if isinstance(limit, int) else limit
        self.seed = seed
        self._lengths = np.array([size.audio_s for size in sizes])
        self._ends = [0]  # step at which each epoch begins; the last is where the next one would
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])
        if isinstance(self.limit, Budget):
            tokens = np.array([size.num_tokens for size in sizes])
            self._lengths = self._lengths + tokens / max(1, tokens.max()) * max(1e-9, self._lengths.max())
            for size in self.sizes:
                if not self.limit.holds([size]):
                    raise PalError(
                        f"example {size.name!r} alone has {size.audio_s:.1f} s of sound and {size.num_tokens} tokens, more than "
                        f"a batch may hold (batch_audio_s {self.limit.audio_s}, batch_text_tokens {self.limit.text_tokens})"
                    )

    def batch(self, step: int) -> list[int]:
        """Numbers of the examples of a step's batch."""
        epoch = 0
        while step >= self._end_of(epoch):
            epoch += 1
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return [int(index) for index in self._epoch[1][step - self._ends[epoch]]]

    def num_steps(self, epochs: float) -> int:
        """Steps of that many epochs, at least one."""
        whole = int(epochs)
        before = self._end_of(whole - 1) if whole else 0
        share = epochs - whole
        return max(1, before + (round(share * (self._end_of(whole) - before)) if share else 0))

    def _end_of(self, epoch: int) -> int:
        while len(self._ends) < epoch + 2:
            self._ends.append(self._ends[-1] + self._num_batches(len(self._ends) - 1))
        return self._ends[epoch + 1]

    def _num_batches(self, epoch: int) -> int:
        if isinstance(self.limit, int):
            return -(-len(self.sizes) // self.limit)
        self._epoch = (epoch, self._batches(epoch))
        return len(self._epoch[1])

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.sizes))
        pool = self.limit * _POOL if isinstance(self.limit, int) else _POOL_OF_BUDGET
        batches = []
        for start in range(0, len(order), pool):
            chosen = order[start : start + pool]
            chosen = chosen[np.argsort(self._lengths[chosen], kind="stable")]
            batches += self._cut(chosen)
        return [batches[int(index)] for index in rng.permutation(len(batches))]

    def _cut(self, chosen: np.ndarray) -> list[np.ndarray]:
        if isinstance(self.limit, int):
            return [chosen[at : at + self.limit] for at in range(0, len(chosen), self.limit)]
        batches, begin = [], 0
        for end in range(1, len(chosen) + 1):
            if not self.limit.holds([self.sizes[index] for index in chosen[begin:end]]):
                batches.append(chosen[begin : end - 1])
                begin = end - 1
        return [*batches, chosen[begin:]]


def to_device(value: Any, device: torch.device) -> Any:
    """Inputs on a device; dicts, as of several encoders, are walked through."""
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor | Frames) else value


class ExampleBatches:
    """Batches of examples that are all at hand."""

    def __init__(self, examples: Sequence[Example], order: BatchOrder) -> None:
        self.examples = examples
        self.order = order

    def from_step(self, first: int) -> Iterator[list[Example]]:
        """See `Batches`."""
        step = first
        while True:
            yield [self.examples[number] for number in self.order.batch(step)]
            step += 1
