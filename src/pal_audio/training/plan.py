"""What a run is about to do: its stages with their objectives and batches, and the lines that say so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pal_audio.data.collation import Collator
from pal_audio.data.prepare import Prepared
from pal_audio.data.shards import StreamBatches
from pal_audio.model import PalForConditionalGeneration, describe
from pal_audio.model.parts import Parts
from pal_audio.training.batches import Batches, BatchOrder, ExampleBatches
from pal_audio.training.objectives import OBJECTIVES, Objective
from pal_audio.training.recipe import Recipe, Stage
from pal_audio.training.tensorboard import plan_line


@dataclass
class PlannedStage:
    """A stage with all that it needs."""

    stage: Stage
    objective: Objective[Any]
    batches: Batches
    num_steps: int


def plan_stages(
    recipe: Recipe, model: PalForConditionalGeneration | Parts, collator: Collator, data: Prepared
) -> list[PlannedStage]:
    """Objective, batches and number of steps of every stage."""
    planned = []
    for index, stage in enumerate(recipe.stages):
        objective = OBJECTIVES[stage.objective](model, collator, stage)
        if data.streams:
            objective.prepare([], data.test)
            stream, size = data.stream(stage.sources, recipe.seed + index), stage.batch_size or 16
            num_steps = stage.steps or max(1, round((stage.epochs or 0) * stream.num_examples / size))
            planned.append(PlannedStage(stage, objective, StreamBatches(stream, size), num_steps))
            continue
        items = objective.prepare(data.train(stage.sources), data.test)
        order = BatchOrder([objective.size(item) for item in items], stage.limit, recipe.seed + index)
        planned.append(PlannedStage(stage, objective, ExampleBatches(items, order), stage.num_steps(order)))
    return planned


def plan_lines(
    folder: Path, recipe: Recipe, model: PalForConditionalGeneration | Parts, data: Prepared, stages: list[PlannedStage]
) -> list[str]:
    """The plan for the console and the report."""
    parts = model.num_parameters() if isinstance(model, Parts) else describe(model)["parameters"]
    lines = [f"model: {', '.join(f'{name} {count:,}' for name, count in parts.items())} parameters"]
    lines.append(f"data: {data.num_examples()} examples to train on, {len(data.test)} held out")
    if recipe.adapter is not None:
        lines.append(f"adapter: {recipe.adapter.type} of rank {recipe.adapter.r} on {recipe.adapter.target}")
    for planned in stages:
        stage = planned.stage
        rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.train.items())
        lines.append(f"stage {stage.name}: {planned.num_steps} steps of {stage.limit}; learning rates: {rates}")
        lines += [f"stage {stage.name}: {note}" for note in planned.objective.notes()]
    return [*lines, plan_line(folder)]
