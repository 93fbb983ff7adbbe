"""What a run is about to do: its stages with their objectives and batches, and the plan that says so before anything is long.

recipe ── skeleton (no weights) ── check_memory ── weights ── plan_stages ── Plan ── the table, or JSON ── check_plan
"""

import warnings
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pal_audio.data.collation import Collator
from pal_audio.data.prepare import Prepared
from pal_audio.data.preview import Preview, preview_inputs
from pal_audio.data.shards import StreamBatches
from pal_audio.model import PalForConditionalGeneration, PalProcessor, describe
from pal_audio.training.batches import Batches, BatchOrder, Budget, ExampleBatches
from pal_audio.training.groups import GROUPS
from pal_audio.training.memory import Device, Memory, activation_bytes, held_memory, size_text
from pal_audio.training.objectives import OBJECTIVES, Objective
from pal_audio.training.recipe import Recipe, Stage
from pal_audio.training.rows import largest_row, num_rows_of
from pal_audio.training.trackers import plan_line


@dataclass
class PlannedStage:
    """A stage with all that it needs."""

    stage: Stage
    objective: Objective
    batches: Batches
    num_steps: int


@dataclass(frozen=True)
class StagePlan:
    """What one stage will do: parameters by part, their share of all, and memory of its largest batch (no batch known: without
    activations)."""

    name: str
    objective: str
    trained: dict[str, int]
    num_trained: int
    num_parameters: int
    learning_rates: dict[str, float]
    num_steps: int
    epochs: float | None
    batch: str
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    parameters: dict[str, int]
    num_train: int
    num_test: int
    adapter: str | None
    stages: list[StagePlan]
    example: Preview | None
    device: Device
    disk_bytes: int
    tracking: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        stages = [asdict(stage) | {"memory": stage.memory.as_dict()} for stage in self.stages]
        return asdict(self) | {"stages": stages}

    def lines(self) -> list[str]:
        """The plan for the report."""
        lines = [f"model: {', '.join(f'{name} {count:,}' for name, count in self.parameters.items())} parameters"]
        lines.append(f"data: {self.num_train} examples to train on, {self.num_test} held out")
        if self.adapter is not None:
            lines.append(f"adapter: {self.adapter}")
        for stage in self.stages:
            rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.learning_rates.items())
            lines.append(f"stage {stage.name}: {stage.num_steps} steps of {stage.batch}; learning rates: {rates}")
            share = (
                f"{stage.num_trained:,} of {stage.num_parameters:,} parameters ({stage.num_trained / stage.num_parameters:.1%})"
            )
            lines.append(f"stage {stage.name} trains {share}; memory about {size_text(stage.memory.total)}")
        lines.append(f"device: {self.device.name} ({self.device.type}) with {size_text(self.device.memory)}")
        return [*lines, self.tracking]

    def show(self, console: Console) -> None:
        """The plan for people: a table of stages, the first supervised example, and what is needed of the machine."""
        before, after = self.lines()[: 2 + (self.adapter is not None)], self.lines()[-1]
        for line in before:
            console.print(line, markup=False)
        table = Table("stage", "trains", "of all", "steps", "epochs", "batch", "memory", title="plan")
        for stage in self.stages:
            parts = "\n".join(f"{part} {count:,}" for part, count in stage.trained.items())
            epochs = "" if stage.epochs is None else f"{stage.epochs:.3g}"
            share = f"{stage.num_trained:,}\n{stage.num_trained / stage.num_parameters:.1%}"
            memory = f"about {size_text(stage.memory.total)}"
            table.add_row(escape(stage.name), parts, share, f"{stage.num_steps:,}", epochs, stage.batch, memory)
        table.columns[1].no_wrap = True
        console.print(table)
        if self.example is not None:
            shown = self.example
            console.print(f"first example {shown.id}: {shown.prompt!r}", markup=False)
            supervised = " ".join(repr(token) for token in shown.supervised)
            console.print(f"supervised, {len(shown.supervised)} of {shown.num_tokens} tokens: {supervised}", markup=False)
        console.print(f"{self.lines()[-2]}; checkpoints take up to {size_text(self.disk_bytes)} of disk", markup=False)
        console.print(after, markup=False)


def plan_stages(recipe: Recipe, model: PalForConditionalGeneration, collator: Collator, data: Prepared) -> list[PlannedStage]:
    """Objective, batches and number of steps of every stage."""
    planned = []
    for index, stage in enumerate(recipe.stages):
        objective = OBJECTIVES[stage.objective](model, collator, stage)
        if data.streams:
            stream, size = data.stream(stage.sources, recipe.seed + index), stage.batch_size or 16
            num_steps = stage.steps or max(1, round((stage.epochs or 0) * stream.num_examples / size))
            planned.append(PlannedStage(stage, objective, StreamBatches(stream, size), num_steps))
            continue
        examples = data.train(stage.sources)
        order = BatchOrder([objective.size(example) for example in examples], stage.limit, recipe.seed + index)
        planned.append(PlannedStage(stage, objective, ExampleBatches(examples, order), stage.num_steps(order)))
    return planned


def make_plan(
    folder: Path,
    recipe: Recipe,
    model: PalForConditionalGeneration,
    processor: PalProcessor,
    data: Prepared,
    stages: Sequence[PlannedStage],
    device: Device,
) -> Plan:
    """The plan of these stages.

    Args:
        folder: of the run.
        recipe: resolved.
        model: the real one or its skeleton.
        processor: the model's.
        data: the examples.
        stages: as `plan_stages` gives them.
        device: where it will train.
    """
    plans = [_stage_plan(planned, model, processor, recipe.precision) for planned in stages]
    adapter = None if recipe.adapter is None else f"{recipe.adapter.type} of rank {recipe.adapter.r} on {recipe.adapter.target}"
    return Plan(
        describe(model)["parameters"],
        data.num_examples(),
        len(data.test),
        adapter,
        plans,
        _first_example(stages, processor),
        device,
        sum(checkpoint_bytes(planned.stage, plan) for planned, plan in zip(stages, plans, strict=True))
        + plans[-1].memory.weights,
        plan_line(folder, recipe.trackers),
    )


def stage_memory(objective: Objective) -> Memory:
    """Weights, gradients and moments of a stage; sets which parameters train."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stage itself will say it
        objective.parameter_groups()
    return held_memory(objective.module)


def checkpoint_bytes(stage: Stage, plan: StagePlan) -> int:
    """Disk that a stage's checkpoints take at most: those kept, and the one that is being written."""
    num_saves = plan.num_steps if stage.eval_every is not None else -(-plan.num_steps // stage.save_every)
    num_kept = min(3 + (stage.eval_every is not None), num_saves)
    return num_kept * (plan.memory.weights + plan.memory.optimizer)


def _stage_plan(planned: PlannedStage, model: PalForConditionalGeneration, processor: PalProcessor, precision: str) -> StagePlan:
    stage, module = planned.stage, planned.objective.module
    memory = stage_memory(planned.objective)
    trained = _by_part(model, stage)
    num_trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if num_trained > sum(trained.values()):
        trained["head"] = num_trained - sum(trained.values())
    epochs = stage.epochs
    batches = planned.batches
    if isinstance(batches, ExampleBatches) and batches.examples:
        sizes = batches.order.sizes
        epochs = epochs or planned.num_steps / batches.order.num_steps(1)
        longest = max(range(len(sizes)), key=lambda number: sizes[number].audio_s)
        row = largest_row(model, processor, batches.examples[longest], sizes[longest].audio_s)
        row = row if stage.packing else replace(row, num_logits=row.num_text + row.num_slots)
        num_rows = -(-num_rows_of(stage, sizes[longest].audio_s, row) // stage.accumulate)
        activations = activation_bytes(module, model, row, num_rows, precision, stage.checkpointing)
        memory = replace(memory, activations=activations)
    return StagePlan(
        stage.name,
        stage.objective,
        trained,
        num_trained,
        sum(parameter.numel() for parameter in module.parameters()),
        dict(stage.train),
        planned.num_steps,
        epochs,
        str(stage.limit) if isinstance(stage.limit, int) else _budget_text(stage.limit),
        memory,
    )


def _budget_text(budget: Budget) -> str:
    parts = [(budget.audio_s, "s of sound"), (budget.text_tokens, "tokens")]
    return " and ".join(f"{limit:g} {unit}" for limit, unit in parts if limit is not None)


def _by_part(model: PalForConditionalGeneration, stage: Stage) -> dict[str, int]:
    """Trained parameters of each part; "llm" is what no finer part beside it names."""
    found = dict.fromkeys(stage.train, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next(part for part in sorted(stage.train, key=lambda part: part == "llm") if GROUPS[part](name))
            found[part] += parameter.numel()
    return {part: count for part, count in found.items() if count}


def _first_example(stages: Sequence[PlannedStage], processor: PalProcessor) -> Preview | None:
    """The first example of the first stage that supervises tokens."""
    for planned in stages:
        batches = planned.batches.from_step(0)
        examples = next(batches)
        if isinstance(batches, Generator):
            batches.close()  # a stream's readers
        inputs = planned.objective.inputs(examples[:1])
        if {"input_ids", "labels"} <= inputs.keys():
            return preview_inputs(processor, examples[0].id, inputs)
    return None
