"""The training loop: deterministic order, one seed a step, checkpoints that continue exactly.

transformers' Trainer works with the model too; this loop exists because a run here is a function of (recipe, step): the
batch, the dropout and the learning rate of step n do not depend on how often the run was stopped. Source: our choice.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.model import PalForConditionalGeneration
from pal_audio.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from pal_audio.training.groups import parameter_groups
from pal_audio.training.recipe import Stage

_POOL = 8  # batches that are drawn together and sorted by length, so that a batch holds clips of like length


@dataclass
class Record:
    """What one step did."""

    step: int
    loss: float
    gradient_norm: float
    learning_rates: dict[str, float]
    seconds: float


@dataclass
class StageRun:
    """One stage of a run.

    Args:
        stage: its recipe.
        index: its number in the recipe.
        seed: of the run.
        folder: where its checkpoints go.
        identity: what a checkpoint must carry to be resumed (of the resolved recipe).
    """

    stage: Stage
    index: int
    seed: int
    folder: Path
    identity: str
    precision: str = "float32"
    records: list[Record] = field(default_factory=list)

    def run(
        self,
        model: PalForConditionalGeneration,
        collator: Collator,
        examples: Sequence[Example],
        resume: bool,
        on_step: Callable[[Record], None] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the stage's end, or until asked to stop; the model is changed in place.

        Args:
            model: on the CPU; it is moved to the accelerator's device.
            collator: makes batches.
            examples: training examples.
            resume: go on from the newest whole checkpoint, if there is one.
            on_step: called with each step's record.
            stopping: asked after each step; where it says yes, that step is saved and the stage is left.
        """
        stage, num_steps = self.stage, self.stage.num_steps(len(examples))
        accelerator = Accelerator(mixed_precision="bf16" if self.precision == "bfloat16" else "no")
        model.to(accelerator.device)
        groups = parameter_groups(model, stage.train, stage.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        first = self._resumed_step(model, optimizer) if resume else 0
        wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
        order = BatchOrder([collator.num_samples(example) for example in examples], stage.batch_size, self.seed + self.index)
        trained = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
        model.train()
        for step in range(first, num_steps):
            started = time.perf_counter()
            torch.manual_seed(step_seed(self.seed, self.index, step))
            factor = schedule(stage, step, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            inputs = collator.training_batch([examples[number] for number in order.batch(step)])
            inputs = {key: value.to(accelerator.device) for key, value in inputs.items()}
            loss = wrapped(**inputs, use_cache=False).loss
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(trained, stage.max_grad_norm)
            wrapped_optimizer.step()
            wrapped_optimizer.zero_grad(set_to_none=True)
            rates = {part: rate * factor for part, rate in stage.train.items()}
            record = Record(step + 1, float(loss.detach()), float(norm), rates, time.perf_counter() - started)  # type: ignore[arg-type]
            if not math.isfinite(record.loss):
                raise RuntimeError(f"stage {stage.name!r}: the loss is {record.loss} at step {step + 1}; lower the learning rate")
            self.records.append(record)
            if on_step is not None:
                on_step(record)
            last = stopping() or step + 1 == num_steps
            if last or (step + 1) % stage.save_every == 0:
                save_checkpoint(self.folder, model, optimizer, {"step": step + 1, "identity": self.identity})
            if last:
                break
        model.eval()

    def resumable_step(self) -> int:
        """The step of the newest whole checkpoint of this stage; 0 without one."""
        newest = newest_checkpoint(self.folder)
        return 0 if newest is None else int(newest.name)

    def _resumed_step(self, model: PalForConditionalGeneration, optimizer: torch.optim.Optimizer) -> int:
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return 0
        state = load_checkpoint(newest, model, optimizer)
        assert state["identity"] == self.identity, "the run's folder was checked against the recipe before"
        return int(state["step"])


class BatchOrder:
    """Which examples make the batch of a step: a function of (seed, step), never of what was drawn before.

    Each epoch is a permutation; it is cut into pools of several batches, each pool sorted by length, so that a batch holds
    clips of like length, and the batches of an epoch are shuffled again.

    Args:
        lengths: of the examples, any unit.
        batch_size: examples a batch; the last of an epoch may be smaller.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = min(batch_size, len(lengths))
        self.seed = seed
        self.num_batches = -(-len(lengths) // self.batch_size)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """Numbers of the examples of a step's batch."""
        epoch, number = divmod(step, self.num_batches)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return [int(index) for index in self._epoch[1][number]]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        pool = self.batch_size * _POOL
        batches = []
        for start in range(0, len(order), pool):
            chosen = order[start : start + pool]
            chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
            batches += [chosen[at : at + self.batch_size] for at in range(0, len(chosen), self.batch_size)]
        return [batches[int(index)] for index in rng.permutation(len(batches))]


def schedule(stage: Stage, step: int, num_steps: int) -> float:
    """Factor of the learning rate at a step counted from 0."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, num_steps - stage.warmup_steps)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[stage.schedule]


def step_seed(seed: int, stage: int, step: int) -> int:
    """Seed of one step's random numbers (dropout, masking)."""
    return int(np.random.SeedSequence([seed, stage, step]).generate_state(1, np.uint64)[0] >> 1)
