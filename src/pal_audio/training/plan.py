"""What a run is about to do: its stages with their objectives and batches, and the plan that says so before anything is long.

recipe ── skeleton (no weights) ── check_memory ── weights ── plan_stages ── Plan ── the table, or JSON ── check_disk
"""

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pal_audio.data.collation import Collator
from pal_audio.data.prepare import Prepared
from pal_audio.data.preview import Preview, preview_inputs
from pal_audio.data.shards import StreamBatches
from pal_audio.errors import PalError
from pal_audio.model import PalForConditionalGeneration, describe
from pal_audio.model.four_bit import unseen_weights
from pal_audio.model.parts import Parts
from pal_audio.training.batches import Batches, BatchOrder, Budget, ExampleBatches
from pal_audio.training.groups import GROUPS
from pal_audio.training.memory import Device, Memory, activation_bytes, held_memory, sharded_memory
from pal_audio.training.objectives import OBJECTIVES, Objective
from pal_audio.training.outcome import Model, Processor
from pal_audio.training.plan_table import Plan, StagePlan
from pal_audio.training.processes import join
from pal_audio.training.recipe import Recipe, Stage
from pal_audio.training.rows import num_rows_of, row_of
from pal_audio.training.trackers import plan_line


@dataclass
class PlannedStage:
    """A stage with all that it needs."""

    stage: Stage
    objective: Objective[Any]
    batches: Batches
    num_steps: int


def plan_stages(recipe: Recipe, model: Model, collator: Collator, data: Prepared) -> list[PlannedStage]:
    """Objective, batches and number of steps of every stage.

    Raises:
        PalError: an example cannot be learnt, or a stage is to be evaluated and no held-out example can.
    """
    planned = []
    for index, stage in enumerate(recipe.stages):
        objective = OBJECTIVES[stage.objective](model, collator, stage)
        items = objective.prepare([] if data.streams else data.train(stage.sources), data.test)
        if stage.eval_every is not None and not objective.held_out():
            raise PalError(
                f"stage {stage.name!r}: eval_every needs held-out examples, but none of data.test has a target that objective "
                f"{stage.objective} knows from training; take it out, or add some"
            )
        if data.streams:
            stream, size = data.stream(stage.sources, recipe.seed + index), stage.batch_size or 16
            num_steps = stage.steps or max(1, round((stage.epochs or 0) * stream.num_examples / size))
            planned.append(PlannedStage(stage, objective, StreamBatches(stream, size), num_steps))
            continue
        order = BatchOrder([objective.size(item) for item in items], stage.limit, recipe.seed + index)
        planned.append(PlannedStage(stage, objective, ExampleBatches(items, order), stage.num_steps(order)))
    return planned


def make_plan(
    folder: Path,
    recipe: Recipe,
    model: Model,
    processor: Processor,
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
    plans = [_stage_plan(planned, model, processor, recipe) for planned in stages]
    adapter = None if recipe.adapter is None else f"{recipe.adapter.type} of rank {recipe.adapter.r} on {recipe.adapter.target}"
    return Plan(
        model.num_parameters() if isinstance(model, Parts) else describe(model)["parameters"],
        data.num_examples(),
        len(data.test),
        adapter,
        plans,
        _first_example(stages, processor),
        device,
        sum(plan.disk_bytes for plan in plans) + _result_bytes(recipe, model),
        plan_line(folder, recipe.trackers),
        join().num,
        recipe.parallel,
    )


def stage_memory(objective: Objective[Any], precision: str, num_shards: int) -> Memory:
    """Weights, gradients and moments of a stage in one process; sets which parameters train."""
    _set_trained(objective)
    return sharded_memory(objective.module, held_memory(objective.module), num_shards, precision)


def num_shards_of(recipe: Recipe) -> int:
    """Processes that the tensors of a stage are shared out to."""
    return join().num if recipe.parallel == "fsdp" else 1


def _set_trained(objective: Objective[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stage itself will say it
        objective.parameter_groups()


def _stage_plan(planned: PlannedStage, model: Model, processor: Processor, recipe: Recipe) -> StagePlan:
    stage, module, batches = planned.stage, planned.objective.module, planned.batches
    memory = stage_memory(planned.objective, recipe.precision, num_shards_of(recipe))
    trained = _by_part(model, stage)
    num_trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if num_trained > sum(trained.values()):
        trained["head"] = num_trained - sum(trained.values())
    epochs = stage.epochs
    if isinstance(batches, ExampleBatches) and batches.examples:
        epochs = epochs or planned.num_steps / batches.order.num_steps(1)
        row, audio_s = row_of(planned.objective, stage, batches, model, processor)
        num_rows = -(-num_rows_of(stage, audio_s, row) // (join().num * stage.accumulate))
        options = (recipe.precision, stage.checkpointing, stage.recompute_audio)
        memory = replace(memory, activations=activation_bytes(module, model, row, num_rows, *options))
    return StagePlan(
        stage.name,
        stage.objective,
        trained,
        num_trained,
        sum(parameter.numel() for parameter in module.parameters()) + unseen_weights(module),
        dict(stage.train),
        planned.num_steps,
        epochs,
        str(stage.limit) if isinstance(stage.limit, int) else _budget_text(stage.limit),
        memory,
        _checkpoint_bytes(planned),
        planned.objective.notes(),
    )


def _checkpoint_bytes(planned: PlannedStage) -> int:
    """Disk that a stage's checkpoints take at most: those kept, and the one that is being written."""
    stage, memory = planned.stage, held_memory(planned.objective.module)
    num_saves = planned.num_steps if stage.eval_every is not None else -(-planned.num_steps // stage.save_every)
    num_kept = min(3 + (stage.eval_every is not None), num_saves)
    return num_kept * (memory.weights + memory.optimizer)


def _result_bytes(recipe: Recipe, model: Model) -> int:
    """Disk of what a finished run leaves; see `outcome.save_results`."""
    names = {stage.encoder or next(iter(model.encoders)) for stage in recipe.stages if stage.of_encoder}
    kept = [model] if isinstance(model, PalForConditionalGeneration) else []
    alone = [model.encoders[name] for name in names]
    if any(stage.objective == "text" for stage in recipe.stages):
        alone.append(model.language_model)
    return sum(held_memory(module).weights for module in (*kept, *alone))


def _budget_text(budget: Budget) -> str:
    parts = [(budget.audio_s, "s of sound"), (budget.text_tokens, "tokens")]
    return " and ".join(f"{limit:g} {unit}" for limit, unit in parts if limit is not None)


def _by_part(model: Model, stage: Stage) -> dict[str, int]:
    """Trained parameters of each part; "llm" is what no finer part beside it names."""
    found = dict.fromkeys(stage.train, 0)
    parts = sorted((part for part in stage.train if part in GROUPS), key=lambda part: part == "llm")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next(part for part in parts if GROUPS[part](name))
            found[part] += parameter.numel()
    return {part: count for part, count in found.items() if count}


def _first_example(stages: Sequence[PlannedStage], processor: Processor) -> Preview | None:
    """The first item of the first stage that supervises tokens."""
    for planned in stages:
        if planned.stage.of_encoder:
            continue
        batches = planned.batches.from_step(0)
        examples = next(batches)
        if isinstance(batches, Generator):
            batches.close()  # a stream's readers
        inputs = planned.objective.inputs(examples[:1])
        return preview_inputs(processor, planned.objective.size(examples[0]).name, inputs)
    return None
