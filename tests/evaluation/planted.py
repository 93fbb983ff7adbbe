"""An answerer whose answers are planted: what it says follows from the sound it hears and the question, and from nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pal_audio.audio import load_audio
from pal_audio.data.manifest import AudioPart, Message
from pal_audio.evaluation.conditions import clip_key
from pal_audio.evaluation.items import Item

SILENCE, NOISE = "silence", "noise"


@dataclass
class Planted:
    """Says of each clip what was planted for it; of anything else it says `otherwise`.

    `said` maps a clip to answers by question. A question that the clip was never asked gets the clip's first answer:
    this is what a model says that hears another item's sound.
    """

    said: dict[str, dict[str, str]] = field(default_factory=dict)
    otherwise: str = "zzz"
    name: str = "planted"
    fingerprint: str = "planted-1"
    batches: list[int] = field(default_factory=list)
    stop_after: int | None = None  # batches; then it dies, as a killed process does

    @classmethod
    def of(cls, items: Sequence[Item], wrong: dict[str, str], **fields: Any) -> "Planted":
        """Right about every item, except where `wrong` has another answer for its id."""
        planted = cls(**fields)
        for item in items:
            answer = wrong.get(item.id, "; ".join(item.truth) if item.groups.get("kind") == "tags" else item.truth[0])
            for clip in item.clips:
                planted.said.setdefault(clip_key(clip), {})[item.question] = answer
        return planted

    def rendered(self, prompt: Sequence[Message]) -> str:
        return "".join(f"[{message.role}] {message.text}\n" for message in prompt)

    def hear(self, clip: Sequence[AudioPart]) -> str:
        for part in clip:
            load_audio(part.path, 16_000, start_s=part.start_s, end_s=part.end_s)
        return clip_key(clip)

    def too_long(self, heard: Sequence[str], prompt: list[Message]) -> str:
        return ""

    def silence(self, heard: str) -> str:
        return SILENCE

    def noise(self, heard: str, seed: int) -> str:
        return NOISE

    def listen(self, heard: Sequence[Sequence[str]]) -> "PlantedBatch":
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(len(heard))
        return PlantedBatch(self, [list(item) for item in heard])

    def answer(self, heard: list[str], prompt: list[Message]) -> str:
        known = self.said.get(heard[0], {}) if heard else {}
        question = "\n".join(message.text for message in prompt)
        return known.get(question, next(iter(known.values()), self.otherwise))


@dataclass
class PlantedBatch:
    who: Planted
    heard: list[list[str]]

    def generate(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[str]:
        return [self.who.answer(heard, prompt) for heard, prompt in zip(self.heard, prompts, strict=True)]

    def rank(self, prompts: Sequence[list[Message]], choices: Sequence[list[str]]) -> list[list[float]]:
        """0 for what it would say, -1 for the rest; where it would say none of the choices, the first is a little better."""
        scores = []
        for heard, prompt, listed in zip(self.heard, prompts, choices, strict=True):
            said = self.who.answer(heard, prompt).split("; ")
            scores.append([0.0 if choice in said else -1.0 + 0.1 * (number == 0) for number, choice in enumerate(listed)])
        return scores
