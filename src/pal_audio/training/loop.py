"""The training loop: deterministic order, one seed a step, checkpoints that continue exactly.

transformers' Trainer works with the model too; this loop exists because a run here is a function of (recipe, step): the
batch, the dropout and the learning rate of step n do not depend on how often the run was stopped. A step's loss and gradient
do not depend on the number of processes either: each computes its share of the batch, over the units of all. Source: our
choice.
"""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pal_audio.errors import PalError
from pal_audio.training.batches import Batches
from pal_audio.training.checkpoint import best_checkpoint, load_checkpoint, mark_best, newest_checkpoint, save_checkpoint
from pal_audio.training.inputs import step_inputs
from pal_audio.training.objectives.base import Objective
from pal_audio.training.parallel import Parallel, accelerator_for, spread
from pal_audio.training.processes import join
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
    peak_bytes: int | None = None  # of the accelerator's memory in this step, where there is one


@dataclass
class StageRun:
    """One stage of a run.

    Args:
        stage: its recipe.
        index: its number in the recipe.
        seed: of the run.
        folder: where its checkpoints go.
        identity: what a checkpoint must carry to be resumed (of the resolved recipe).
        precision: "float32" or "bfloat16".
        parallel: how many processes share the work: "ddp" or "fsdp"; see `training.parallel`.
        workers: processes that make inputs ahead of each process that trains; they change no number.
        watch: evaluates between steps, if anything does.
        best: step and held-out loss of the best evaluation so far.
    """

    stage: Stage
    index: int
    seed: int
    folder: Path
    identity: str
    precision: str = "float32"
    parallel: Parallel = "ddp"
    workers: int = 0
    watch: Watch | None = None
    best: dict[str, Any] | None = None
    records: list[Record] = field(default_factory=list)

    def run(
        self,
        objective: Objective[Any],
        batches: Batches,
        num_steps: int,
        resume: bool,
        on_step: Callable[[Record], None] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the stage's end, or until asked to stop; the objective's module is changed in place.

        Where a launcher has started several processes, all call this alike.

        Args:
            objective: its module is moved to the accelerator's device (where it is not sharded).
            batches: training examples.
            num_steps: where the stage ends.
            resume: go on from the newest whole checkpoint, if there is one.
            on_step: called with each step's record, by the main process alone.
            stopping: asked after each step, by all processes; where it says yes, that step is saved and the stage is left.

        Raises:
            ConnectionAbortedError: another process has failed.
        """
        stage, module, everyone = self.stage, objective.module, join()
        accelerator = accelerator_for(self.precision)
        if self.parallel == "ddp" or everyone.num == 1:
            module.to(accelerator.device)
        groups = objective.parameter_groups()
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        first = self._resumed_step(module, optimizer) if resume else 0
        objective.begin()
        training = spread(self.parallel, module, optimizer, accelerator, everyone)
        trained = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
        training.module.train()
        steps, device = range(first, num_steps), accelerator.device
        with closing(step_inputs(objective, batches, steps, stage.accumulate, self.workers, everyone, device)) as ready:
            following = next(ready, None)
            is_whole = True
            for step in steps:
                if following is None:
                    break
                parts, num_units = following
                started = time.perf_counter()
                factor = schedule(stage, step, num_steps)
                for group in training.optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                losses = []
                for number, (inputs, weight) in enumerate(parts):
                    torch.manual_seed(step_seed(self.seed, self.index, step, *everyone.more_seed(number)))
                    with training.part(is_last=number + 1 == len(parts)):
                        part_loss = objective.loss(training.module, objective.on_device(inputs, device), num_units) * weight
                        (part_loss * everyone.num).backward()  # the mean over processes, which reduction takes, is then the sum
                    losses.append(part_loss.detach())
                norm = accelerator.clip_grad_norm_(trained, stage.max_grad_norm)
                norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
                training.optimizer.step()
                training.optimizer.zero_grad(set_to_none=True)
                following = next(ready, None)  # made while an accelerator works; reading the loss waits for it
                loss = everyone.total(float(sum(losses)))
                rates = {part: rate * factor for part, rate in stage.train.items()}
                record = Record(step + 1, loss, float(norm), rates, time.perf_counter() - started)  # type: ignore[arg-type]
                record.peak_bytes = _peak_bytes(device)
                for what, value in (("loss", record.loss), ("gradient norm", record.gradient_norm)):
                    if not math.isfinite(value):  # the weights of this step are of no use: they are not saved
                        raise PalError(f"stage {stage.name!r}: the {what} is {value} at step {step + 1}; lower the learning rate")
                if self.watch is not None and self.watch.due(step + 1, num_steps):
                    record.held_out_loss = self.watch.evaluate(step + 1, training, device)
                improved = self._improved(record)
                self.records.append(record)
                if on_step is not None and everyone.is_main:
                    on_step(record)
                last = stopping() or step + 1 == num_steps
                if last or improved or (step + 1) % stage.save_every == 0:
                    training.gather(keep=last or everyone.is_main)
                    with everyone.checked():
                        if everyone.is_main:
                            state = {"step": step + 1, "identity": self.identity, "best": self.best}
                            save_checkpoint(self.folder, module, optimizer, state)
                if last:
                    is_whole = step + 1 == num_steps
                    break
        if stage.keep == "best" and is_whole:
            if self.best is None:
                raise PalError(f"stage {stage.name!r}: no held-out loss was a number, so there is no best checkpoint")
            with everyone.checked():
                load_checkpoint(best_checkpoint(self.folder, self.best["step"]), module, optimizer)
        module.eval()
        objective.end()

    def resumable_step(self) -> int:
        """The step of the newest whole checkpoint of this stage; 0 without one. The main process looks for all."""
        newest = newest_checkpoint(self.folder) if join().is_main else None
        return join().main_says(0 if newest is None else int(newest.name))

    def _resumed_step(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        newest = self.resumable_step()
        if newest == 0:
            return 0
        state = load_checkpoint(self.folder / f"{newest:08d}", module, optimizer)
        assert state["identity"] == self.identity, "the run's folder was checked against the recipe before"
        self.best = state["best"]
        if join().is_main:
            mark_best(self.folder, self.best)
        return int(state["step"])

    def _improved(self, record: Record) -> bool:
        """Whether this step's held-out loss is the lowest so far; if so it is noted."""
        loss = record.held_out_loss
        if loss is None or not math.isfinite(loss) or (self.best is not None and loss >= self.best["held_out_loss"]):
            return False
        self.best = {"step": record.step, "held_out_loss": loss}
        return True


def _peak_bytes(device: torch.device) -> int | None:
    """The most memory held on a CUDA device since the last call."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def schedule(stage: Stage, step: int, num_steps: int) -> float:
    """Factor of the learning rate at a step counted from 0."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, num_steps - stage.warmup_steps)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[stage.schedule]


def step_seed(seed: int, stage: int, step: int, *more: int) -> int:
    """Seed of one step's random numbers (dropout, masking); `more` tells its parts and processes apart."""
    return int(np.random.SeedSequence([seed, stage, step, *more]).generate_state(1, np.uint64)[0] >> 1)
