"""Who answers: a PAL model, or anything that keeps this contract (tests plant one whose answers are known).

Sound is heard first, apart from the question, so that a clip that cannot be read is one item's fault and no batch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pal_audio.data.manifest import AudioPart, Message


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

    def rendered(self, prompt: Sequence[Message]) -> str:
        """A prompt as the model reads it, with a marker where sound stands: for the report."""
        ...

    def hear(self, clip: Sequence[AudioPart]) -> Any:
        """Read the stretches of a clip, joined.

        Raises:
            AudioError: it cannot be read.
        """
        ...

    def too_long(self, heard: Sequence[Any], prompt: list[Message]) -> str:
        """Why a prompt cannot be asked beside these clips although each of them can be heard; "" where it can."""
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
