"""The training loop: deterministic order, one seed a step, checkpoints that continue exactly.

transformers' Trainer works with the model too; this loop exists because a run here is a function of (recipe, step): the
batch, the dropout and the learning rate of step n do not depend on how often the run was stopped. Source: our choice.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from pal_audio.data.manifest import Example
from pal_audio.training.batches import Batches, to_device
from pal_audio.training.checkpoint import best_checkpoint, load_checkpoint, mark_best, newest_checkpoint, save_checkpoint
from pal_audio.training.objectives.base import Objective
from pal_audio.training.recipe import Stage
from pal_audio.training.watch import Watch


@dataclass
class Record:
    """What one step did."""

    step: int
    loss: float
    gradient_norm: float
    learning_rates: dict[str, float]
    seconds: float
    held_out_loss: float | None = None


@dataclass
class StageRun:
    """One stage of a run.

    Args:
        stage: its recipe.
        index: its number in the recipe.
        seed: of the run.
        folder: where its checkpoints go.
        identity: what a checkpoint must carry to be resumed (of the resolved recipe).
        watch: evaluates between steps, if anything does.
        best: step and held-out loss of the best evaluation so far.
    """

    stage: Stage
    index: int
    seed: int
    folder: Path
    identity: str
    precision: str = "float32"
    watch: Watch | None = None
    best: dict[str, Any] | None = None
    records: list[Record] = field(default_factory=list)

    def run(
        self,
        objective: Objective,
        batches: Batches,
        num_steps: int,
        resume: bool,
        on_step: Callable[[Record], None] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the stage's end, or until asked to stop; the objective's module is changed in place.

        Args:
            objective: its module is moved to the accelerator's device.
            batches: training examples.
            num_steps: where the stage ends.
            resume: go on from the newest whole checkpoint, if there is one.
            on_step: called with each step's record.
            stopping: asked after each step; where it says yes, that step is saved and the stage is left.
        """
        stage, module = self.stage, objective.module
        accelerator = Accelerator(mixed_precision="bf16" if self.precision == "bfloat16" else "no")
        module.to(accelerator.device)
        groups = objective.parameter_groups()
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        first = self._resumed_step(module, optimizer) if resume else 0
        wrapped, wrapped_optimizer = accelerator.prepare(module, optimizer)
        trained = [parameter for group in groups for parameter in group["params"]]
        objective.begin()
        module.train()
        done = first
        for step, examples in zip(range(first, num_steps), batches.from_step(first), strict=False):
            started = time.perf_counter()
            factor = schedule(stage, step, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            parts = [objective.inputs(part) for part in _cut(examples, stage.accumulate)]
            num_units = sum(objective.num_units(inputs) for inputs in parts)
            loss = 0.0
            for number, inputs in enumerate(parts):
                torch.manual_seed(step_seed(self.seed, self.index, step, *([number] if number else [])))
                part_loss = objective.loss(wrapped, to_device(inputs, accelerator.device), num_units)
                accelerator.backward(part_loss)
                loss += float(part_loss.detach())
            norm = accelerator.clip_grad_norm_(trained, stage.max_grad_norm)
            wrapped_optimizer.step()
            wrapped_optimizer.zero_grad(set_to_none=True)
            rates = {part: rate * factor for part, rate in stage.train.items()}
            record = Record(step + 1, loss, float(norm), rates, time.perf_counter() - started)  # type: ignore[arg-type]
            if not math.isfinite(record.loss):
                raise RuntimeError(f"stage {stage.name!r}: the loss is {record.loss} at step {step + 1}; lower the learning rate")
            if self.watch is not None and self.watch.due(step + 1, num_steps):
                record.held_out_loss = self.watch.evaluate(step + 1, wrapped, accelerator.device)
            improved = self._improved(record)
            self.records.append(record)
            if on_step is not None:
                on_step(record)
            last = stopping() or step + 1 == num_steps
            if last or improved or (step + 1) % stage.save_every == 0:
                state = {"step": step + 1, "identity": self.identity, "best": self.best}
                save_checkpoint(self.folder, module, optimizer, state)
            done = step + 1
            if last:
                break
        if stage.keep == "best" and done == num_steps:
            if self.best is None:
                raise RuntimeError(f"stage {stage.name!r}: no held-out loss was a number, so there is no best checkpoint")
            load_checkpoint(best_checkpoint(self.folder, self.best["step"]), module, optimizer)
        module.eval()
        objective.end()

    def resumable_step(self) -> int:
        """The step of the newest whole checkpoint of this stage; 0 without one."""
        newest = newest_checkpoint(self.folder)
        return 0 if newest is None else int(newest.name)

    def _resumed_step(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return 0
        state = load_checkpoint(newest, module, optimizer)
        assert state["identity"] == self.identity, "the run's folder was checked against the recipe before"
        self.best = state["best"]
        mark_best(self.folder, self.best)
        return int(state["step"])

    def _improved(self, record: Record) -> bool:
        """Whether this step's held-out loss is the lowest so far; if so it is noted."""
        loss = record.held_out_loss
        if loss is None or not math.isfinite(loss) or (self.best is not None and loss >= self.best["held_out_loss"]):
            return False
        self.best = {"step": record.step, "held_out_loss": loss}
        return True


def _cut(examples: Sequence[Example], num_parts: int) -> list[Sequence[Example]]:
    """Examples in at most `num_parts` parts of like size, in order."""
    size = -(-len(examples) // num_parts)
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def schedule(stage: Stage, step: int, num_steps: int) -> float:
    """Factor of the learning rate at a step counted from 0."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, num_steps - stage.warmup_steps)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[stage.schedule]


def step_seed(seed: int, stage: int, step: int, *more: int) -> int:
    """Seed of one step's random numbers (dropout, masking); `more` tells its parts and processes apart."""
    return int(np.random.SeedSequence([seed, stage, step, *more]).generate_state(1, np.uint64)[0] >> 1)
