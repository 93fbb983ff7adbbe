"""What is seen of a stage while it trains: its pace, the loss on held-out examples, and answers beside the truth.

OUT/samples.jsonl   one line an evaluation: index, stage, step, held_out_loss, answers [{id, question, truth, answer}]

An evaluation changes no number of the training: the same examples each time, no gradient, evaluation mode, and all random states
as they were before. Source: our choice.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import torch
from rich.console import Console
from torch import nn

from pal_audio.training.objectives import AnswerObjective, Objective
from pal_audio.training.parallel import Spread
from pal_audio.training.processes import join
from pal_audio.training.recipe import Stage
from pal_audio.training.scores import Answer, answer_all

_MAX_NEW_TOKENS = 32
_ROWS = 8  # of a held-out batch where the stage's own batches have no fixed number
_STEPS_TO_JUDGE = 3
_SECONDS_TO_JUDGE = 20.0


@dataclass
class Watch:
    """Evaluates a stage on a fixed part of the held-out examples.

    Args:
        stage: its recipe, which says when.
        index: its number.
        objective: its loss is taken; an `answer` objective also answers.
        held_out: items of the objective to choose from.
        seed: of the choice, which is the same in every stage.
        file: takes a line an evaluation; None writes nothing.
        console: shows answers beside the truth.
    """

    stage: Stage
    index: int
    objective: Objective[Any]
    held_out: Sequence[Any]
    seed: int
    file: TextIO | None
    console: Console

    def __post_init__(self) -> None:
        chosen = np.random.default_rng([7, self.seed]).permutation(len(self.held_out))[: self.stage.eval_examples]
        self.examples = [self.held_out[index] for index in sorted(int(index) for index in chosen)]

    def due(self, step: int, num_steps: int) -> bool:
        """Whether to evaluate after this step: at every `eval_every`-th, and at the stage's end."""
        every = self.stage.eval_every
        return every is not None and (step % every == 0 or step == num_steps)

    def evaluate(self, step: int, training: Spread, device: torch.device) -> float:
        """The held-out loss; it and some answers are written and shown, by the main process.

        All processes call it alike: each takes the loss of its share, and gets that of all.

        Args:
            step: just done.
            training: the objective's module as it is spread over the processes.
            device: where it computes.

        Raises:
            ConnectionAbortedError: another process has failed.
        """
        everyone = join()
        with undisturbed(training.module, device), undisturbed(self.objective.module, device):
            with training.part(is_last=True):
                loss = self._loss(training.module, device)
            if self._answering:
                training.gather(keep=everyone.is_main)  # a shard of a model does not answer alone
            with everyone.checked():
                answers = self._answers() if everyone.is_main else []
        if not everyone.is_main:
            return loss
        rows = [{"id": item.id, "question": item.question, "truth": item.truth, "answer": item.answer} for item in answers]
        line = {"index": self.index, "stage": self.stage.name, "step": step, "held_out_loss": loss, "answers": rows}
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
        self.console.print(f"step {step}: held-out loss {loss:.4f} over {len(self.examples)} examples", markup=False)
        for answer in answers:
            self.console.print(f"  {answer.question!r}: {answer.answer!r}, truth {answer.truth!r}", markup=False)
        return loss

    def _loss(self, module: nn.Module, device: torch.device) -> float:
        """Mean over the units of all chosen examples."""
        everyone, num_rows = join(), self._num_rows
        parts = [self.examples[start : start + num_rows] for start in range(0, len(self.examples), num_rows)]
        total, num_all = 0.0, 0
        for start in range(0, len(parts), everyone.num):
            is_own = start + everyone.rank < len(parts)  # without a part of its own a process runs a sharded module all the same
            with everyone.checked():
                inputs = self.objective.inputs(parts[start + everyone.rank if is_own else 0])
            num_units = self.objective.num_units(inputs)
            loss = self.objective.loss(module, self.objective.on_device(inputs, device), max(1, num_units))
            if is_own and num_units:
                total += num_units * float(loss)
                num_all += num_units
        return everyone.total(total) / max(1.0, everyone.total(num_all))

    @property
    def _num_rows(self) -> int:
        """Examples of a held-out batch: no more than the stage trains on at once, so that they fit."""
        limit = self.stage.limit
        return max(1, limit // self.stage.accumulate) if isinstance(limit, int) else _ROWS

    @property
    def _answering(self) -> bool:
        return isinstance(self.objective, AnswerObjective) and self.stage.eval_samples > 0

    def _answers(self) -> list[Answer]:
        if not self._answering:
            return []
        assert isinstance(self.objective, AnswerObjective)
        chosen = self.examples[: self.stage.eval_samples]
        return answer_all(self.objective.model, self.objective.collator, chosen, self._num_rows, _MAX_NEW_TOKENS)


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and every random state is as it was before."""
    training = [part for part in module.modules() if part.training]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True
            random.setstate(python)
            np.random.set_state(numpy)


class Pace:
    """Says once how long a stage will take, when its first steps have shown it.

    Args:
        num_left: steps that are to do.
        say: gets the line.
        clock: seconds.
    """

    def __init__(self, num_left: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._num_left = num_left
        self._say = say
        self._clock = clock
        self._ends: list[float] = []
        self._said = False

    def step(self) -> None:
        """Note that a step has ended. The first are not judged by: they read sound anew, compile, or warm up."""
        if self._said:
            return
        self._ends.append(self._clock())
        if len(self._ends) < _STEPS_TO_JUDGE or self._ends[-1] - self._ends[0] < _SECONDS_TO_JUDGE:
            return
        self._said = True
        num_after = self._num_left - len(self._ends)
        if num_after > 0:
            taken = np.diff(self._ends)
            seconds = float(np.median(taken[len(taken) // 2 :]))
            self._say(f"about {duration_text(seconds * num_after)} to go in this stage")


def duration_text(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
