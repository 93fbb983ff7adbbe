"""Who answers: a PAL model, or anything that keeps this contract (tests plant one whose answers are known).

Sound is heard first, apart from the question, so that a clip that cannot be read is one item's fault and no batch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pal_audio.data.manifest import AudioPart, Message

HeardT = TypeVar("HeardT")


@dataclass(frozen=True)
class Question(Generic[HeardT]):
    """A prompt with what is heard in the places of its audio parts, and what may be answered (for `rank`)."""

    messages: list[Message]
    heard: list[HeardT]
    choices: list[str]


class Batch(Protocol):
    """What was heard by a batch of items; made once for all questions about it."""

    def generate(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[str]:
        """One greedy answer to each prompt."""
        ...

    def rank(self, prompts: Sequence[list[Message]], choices: Sequence[list[str]]) -> list[list[float]]:
        """Of each prompt the length-normalised log-probability of each of its choices."""
        ...


class Answerer(Protocol):
    """A model that can be asked.

    Attributes:
        name: for the report.
        fingerprint: of everything that its answers depend on.
    """

    name: str
    fingerprint: str

    def hear(self, clip: Sequence[AudioPart]) -> Any:
        """Read the stretches of a clip, joined.

        Raises:
            AudioError: it cannot be read.
        """
        ...

    def silence(self, heard: Any) -> Any:
        """Silence as long as what was heard."""
        ...

    def noise(self, heard: Any, seed: int) -> Any:
        """White noise as long as what was heard."""
        ...

    def listen(self, heard: Sequence[Sequence[Any]]) -> Batch:
        """Take in what each item of a batch hears, before any question."""
        ...
