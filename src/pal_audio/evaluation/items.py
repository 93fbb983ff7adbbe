"""What a task asks: items. One item is one question about sound, with what its answer is judged by.

task ── read ──► items ── answering ──► answers.jsonl ── scoring ──► scores.json ── report ──► report.md, *.png
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from pal_audio.config import StrictConfig
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart

Kind = Literal["classify", "tags", "choices", "exact", "caption", "transcribe"]
Method = Literal["rank", "generate", "match"]

UNKNOWN_SOURCE = ""  # an item without sound: its own id is its source


class Item(StrictConfig):
    """One question.

    Attributes:
        id: unique in its task.
        messages: the prompt as a manifest holds it, its text that of `generate` and `rank`.
        clips: of each audio part of the messages in order, the stretches of sound that are joined to it; nearly always one.
        truth: the answer, all labels of a multi-label item, all references of a caption; empty where it is not known.
        choices: what may be answered; of a classification all its labels, the same list for each item.
        source: the recording that it stands on; the bootstrap draws these, since questions about one clip are not independent.
        groups: what scores are broken down by, as {"difficulty": "easy"}.
        fault: why it cannot be asked ("" = it can); it stays in the denominator.
    """

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    clips: list[list[AudioPart]] = Field(default_factory=list)
    truth: list[str] = Field(default_factory=list)
    choices: list[str] = Field(default_factory=list)
    source: str = UNKNOWN_SOURCE
    groups: dict[str, str] = Field(default_factory=dict)
    fault: str = ""

    @classmethod
    def of(cls, example: Example, **fields: Any) -> Item:
        """An item that asks what a manifest's example asks; its source is its first sound file."""
        clips = [[part] for part in example.audio]
        source = clips[0][0].path if clips else example.id
        return cls(id=example.id, messages=example.prompt, **{"clips": clips, "source": source, **fields})

    @property
    def question(self) -> str:
        """All text of the prompt."""
        return "\n".join(message.text for message in self.messages)

    def asked(self, prompt: str | None) -> list[Message]:
        """The messages with another text in the last user message; its clips stay before it."""
        if prompt is None:
            return self.messages
        last = max(number for number, message in enumerate(self.messages) if message.role == "user")
        audio = [part for part in self.messages[last].parts if isinstance(part, AudioPart)]
        changed = Message(role="user", content=[*audio, TextPart(text=prompt)])
        return [*self.messages[:last], changed, *self.messages[last + 1 :]]


def hash_items(items: Sequence[Item], settings: dict[str, Any]) -> str:
    """SHA-256 of everything that the score of a task depends on beside the model: items, prompts, methods, versions.

    Sound enters by the name of its file, not by its folder (a moved set stays the same) and not by its bytes.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for item in items:
        digest.update(json.dumps(portable(item), sort_keys=True).encode())
    return digest.hexdigest()


def portable(item: Item) -> dict[str, Any]:
    """An item without the folder that its sound lies in: two items are the same question if these are equal."""
    values = item.model_dump(mode="json", exclude={"messages", "clips", "source", "fault"})
    clips = [[[_tail(part.path), part.start_s, part.end_s] for part in clip] for clip in item.clips]
    texts = [[message.role, message.text] for message in item.messages]
    return values | {"clips": clips, "messages": texts, "source": _tail(item.source), "fault": bool(item.fault)}


def _tail(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]
