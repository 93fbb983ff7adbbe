"""Exact-match accuracy of generated answers: what a small run reports about itself."""

import string
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.model import PalForConditionalGeneration
from pal_audio.training.device import to_device


@dataclass
class Answer:
    """A generated answer beside the truth."""

    id: str
    task: str
    question: str
    answer: str
    truth: str

    @property
    def right(self) -> bool:
        return normalise(self.answer) == normalise(self.truth)


def normalise(text: str) -> str:
    """Lower case, without punctuation and repeated spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def answer_all(
    model: PalForConditionalGeneration,
    collator: Collator,
    examples: Sequence[Example],
    batch_size: int = 32,
    max_new_tokens: int = 16,
    muted: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Greedy answers to every example's prompt.

    Args:
        model: in eval mode.
        collator: makes the batches.
        examples: with an answer each.
        muted: silence instead of sound.
        progress: called with the number of examples done since the last call.
    """
    tokenizer = collator.processor.tokenizer
    answers = []
    for start in range(0, len(examples), batch_size):
        chunk = examples[start : start + batch_size]
        inputs: dict[str, Any] = collator.prompt_batch(chunk, muted=muted)
        inputs = to_device(inputs, model.device)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [
            Answer(example.id, example.task, example.question, text.strip(), example.answer or "")
            for example, text in zip(chunk, texts, strict=True)
        ]
        if progress is not None:
            progress(len(chunk))
    return answers


def accuracy(answers: Sequence[Answer]) -> dict[str, float]:
    """Share of right answers, by task and over `all`."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        by_task[answer.task].append(answer.right)
        by_task["all"].append(answer.right)
    return {task: sum(right) / len(right) for task, right in sorted(by_task.items())}
