"""Batches to answers: what each item hears under each condition, and each method's answer to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pal_audio.audio import AudioError
from pal_audio.data.manifest import AudioPart
from pal_audio.evaluation.answerer import Answerer
from pal_audio.evaluation.conditions import Condition, Donors, clip_key, noise_seed
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.store import Answer, Batch, TaskInfo

DIGITS = 6  # of a stored log-probability


class Asker:
    """Asks batches of items.

    Args:
        answerer: who is asked.
        donors: of each task.
    """

    def __init__(self, answerer: Answerer, donors: dict[str, Donors]) -> None:
        self.answerer, self.donors = answerer, donors
        self._heard: dict[str, Any] = {}  # of the batch at hand: what was heard, or the error

    def ask(self, batch: Batch) -> list[Answer]:
        """The answers to a batch, conditions one after another."""
        self._heard = {}
        faults = [item.fault or self._fault(item, batch.task) for item in batch.items]
        return [answer for condition in batch.task.conditions for answer in self._under(condition, batch, faults)]

    def _under(self, condition: Condition, batch: Batch, faults: list[str]) -> list[Answer]:
        task, heard = batch.task, []
        faults = list(faults)
        for number, item in enumerate(batch.items):
            try:
                clips = [] if faults[number] else self._clips(item, condition, task)
            except AudioError as error:
                faults[number], clips = str(error), []
            heard.append(clips)
        asked = [number for number, fault in enumerate(faults) if not fault]
        answers = [
            Answer(task=task.name, condition=condition, id=item.id, fault=fault)
            for item, fault in zip(batch.items, faults, strict=True)
        ]
        if not asked:
            return answers
        items = [batch.items[number] for number in asked]
        memory = self.answerer.listen([heard[number] for number in asked])
        for method in task.methods:
            prompts = [item.asked(task.prompts[method]) for item in items]
            if method == "rank":
                for number, scores in zip(asked, memory.rank(prompts, [item.choices for item in items]), strict=True):
                    answers[number].scores = [round(score, DIGITS) for score in scores]
            else:
                for number, text in zip(asked, memory.generate(prompts, task.max_new_tokens), strict=True):
                    answers[number].answers[method] = text
        return answers

    def _fault(self, item: Item, task: TaskInfo) -> str:
        """Why an item cannot be asked under any condition: its own clips cannot be read, or are too long with its question."""
        try:
            return self._too_long([self._hear(clip) for clip in item.clips], item, task)
        except AudioError as error:
            return str(error)

    def _too_long(self, heard: list[Any], item: Item, task: TaskInfo) -> str:
        reasons = (self.answerer.too_long(heard, item.asked(task.prompts[method])) for method in task.methods)
        return next((reason for reason in reasons if reason), "")

    def _clips(self, item: Item, condition: Condition, task: TaskInfo) -> list[Any]:
        """What an item hears under a condition.

        Raises:
            AudioError: no clip of another source can be read and asked about.
        """
        heard: list[Any] = []
        for clip in item.clips:
            if condition != "shuffled":
                heard.append(self._in_place_of(clip, condition))
                continue
            others = (self._readable(other) for other in self.donors[task.name].of(clip))
            fitting = (other for other in others if other is not None and not self._too_long([*heard, other], item, task))
            donor = next(fitting, None)
            if donor is None:
                raise AudioError("no clip of another source can be read, or none is short enough for the question")
            heard.append(donor)
        return heard

    def _readable(self, clip: Sequence[AudioPart]) -> Any | None:
        try:
            return self._hear(clip)
        except AudioError:
            return None

    def _in_place_of(self, clip: Sequence[AudioPart], condition: Condition) -> Any:
        """What is heard instead of a clip, of its own length."""
        heard = self._hear(clip)
        if condition == "muted":
            return self.answerer.silence(heard)
        return self.answerer.noise(heard, noise_seed(clip)) if condition == "noise" else heard

    def _hear(self, clip: Sequence[AudioPart]) -> Any:
        """Read each clip of a batch once, the unreadable ones too."""
        key = clip_key(clip)
        if key not in self._heard:
            try:
                self._heard[key] = self.answerer.hear(clip)
            except AudioError as error:
                self._heard[key] = error
        if isinstance(self._heard[key], AudioError):
            raise self._heard[key]
        return self._heard[key]
