"""`pal train`: recipe -> data -> model -> stages -> a finished folder with its scores.

OUT/recipe.json     the resolved recipe, provenance     OUT/log.jsonl        one line a step
OUT/plan.json       parameters, steps and memory of each stage, as `--plan --json` prints them
OUT/data/           composed sound and manifests        OUT/scores.json      held-out accuracy, with sound and muted
OUT/checkpoints-K/  of stage K                          OUT/answers.jsonl    every held-out answer beside the truth
OUT/final/          model and processor                 OUT/report.md        plan, scores, curves.png, ten answers
OUT/llm/            the LLM alone, after a `text` stage OUT/encoders/NAME/   one that a `ctc` or `tags` stage has trained
OUT/tensorboard/    event files, where it is installed  OUT/samples.jsonl    answers while it trained
OUT/finished.json   written last
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from pal_audio.data.folder import locked
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import write_text
from pal_audio.data.prepare import Prepared, prepare
from pal_audio.data.workers import start_server
from pal_audio.errors import PalError, Stopped
from pal_audio.many_objects import left_alone, many_objects
from pal_audio.training.checkpoint import full_disk_named
from pal_audio.training.fit import check_context, check_disk, check_memory
from pal_audio.training.folder import begun_identity, command_again, identity_of, prepare_folder, resolved_recipe
from pal_audio.training.held_out import progress_bar, score_answers
from pal_audio.training.inputs import step_inputs
from pal_audio.training.interrupt import stop_request
from pal_audio.training.loop import Record, StageRun
from pal_audio.training.memory import Device
from pal_audio.training.outcome import build, hear_on, outline, processor_of, save_results, score_lines, texts_of
from pal_audio.training.plan import PlannedStage, make_plan, plan_stages
from pal_audio.training.preflight import asks_questions, check_recipe, collator_of, run_folder
from pal_audio.training.processes import join
from pal_audio.training.provenance import check_data, describe_run
from pal_audio.training.recipe import Recipe, load_recipe
from pal_audio.training.report import write_report
from pal_audio.training.trackers import Trackers, chosen, tracking
from pal_audio.training.watch import Pace, Watch

__all__ = ["resolved_recipe", "train"]

_PATIENCE_S = 5.0


def train(
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Run a recipe to its end.

    Where a launcher has started several processes, all call this alike; the main one writes and shows.

    Args:
        recipe_path: YAML file.
        overrides: `a.b=value` each.
        out: the run's folder; default runs/NAME.
        resume: go on in a folder of the same recipe.
        overwrite: delete what the folder holds.
        console: for progress; standard error where None.

    Returns:
        The run's folder; the model is in its `final/`.

    Raises:
        PalError: the recipe is wrong, or the folder is in use, not empty, or of another recipe, or its disk is full.
        Stopped: SIGINT or SIGTERM came while it trained; all steps are saved.
        ConnectionAbortedError: another process has failed or is gone.
    """
    everyone = join()
    console = console or Console(stderr=True, quiet=not everyone.is_main)
    recipe = load_recipe(recipe_path, overrides)
    folder, identity = run_folder(recipe, out), identity_of(recipe)
    check_recipe(recipe)
    device = Device.here()
    if any(recipe.num_workers(stage) for stage in recipe.stages):
        start_server(step_inputs.__module__)
    with everyone.loss_named(), everyone.main_first():  # what it fetches is then there for the others
        check_memory(recipe, outline(recipe), collator_of(processor_of(recipe)), device)
    if folder.exists() and not folder.is_dir():
        raise PalError(f"{folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with full_disk_named(folder), everyone.loss_named(), ExitStack() as held:
        with everyone.main_first():
            if everyone.is_main:
                held.enter_context(locked(folder))
                prepare_folder(folder, identity, resume, overwrite)
        if everyone.main_says((folder / "finished.json").is_file()):
            console.print(f"{folder}: finished already")
            return folder
        with many_objects():
            with everyone.main_first():
                if everyone.is_main:
                    describe_run(folder, recipe, recipe_path, identity, device)
                identity = begun_identity(folder)
                data = _prepare(console, recipe, folder)
            torch.manual_seed(recipe.seed)
            with everyone.main_first():
                model, processor = build(recipe, texts_of(data.sample()))
            hear_on(processor, model, device)
            with everyone.checked():
                ready = None if recipe.frame_cache is None else FrameCache(recipe.frame_cache, model.encoders)
                collator = collator_of(processor, ready, recipe.unreadable_clips == "skip")
                stages = plan_stages(recipe, model, collator, data)
                if everyone.is_main:
                    check_data(folder, recipe, data, ready)
                    plan = make_plan(folder, recipe, model, processor, data, stages, device)
                    plan.show(console)
                    write_text(folder / "plan.json", json.dumps(plan.as_dict(), indent=2) + "\n")
                    check_context(model, processor, stages, collator, data.test)
                    check_disk(folder, plan)
        held.enter_context(left_alone())
        stage_scores: list[dict[str, Any]] = []
        names = chosen(recipe.trackers) if everyone.is_main else []
        with (
            stop_request(0.0 if everyone.num == 1 else _PATIENCE_S) as stop,
            tracking(folder, names, recipe.model_dump(mode="json")) as trackers,
        ):
            stopping = everyone.stopping(stop)
            for index, planned in enumerate(stages):
                stage, places = planned.stage, folder / f"checkpoints-{index}"
                run = StageRun(stage, index, recipe.seed, places, identity, recipe.precision, recipe.parallel)
                run.workers = recipe.num_workers(stage)
                if stage.eval_every is not None:
                    run.watch = Watch(stage, index, planned.objective, planned.objective.held_out(), recipe.seed, None, console)
                step = run.resumable_step() if resume else 0
                num_before = sum(earlier.num_steps for earlier in stages[:index])
                shown = _reporting(console, folder, trackers, run, planned, step, num_before)
                with shown if everyone.is_main else nullcontext() as report:
                    run.run(planned.objective, planned.batches, planned.num_steps, resume, report, stopping)
                if stopping():
                    assert stop.signal is not None
                    where = f"stage {stage.name!r}, step {run.resumable_step()}"
                    again = command_again(recipe_path, overrides, folder)
                    raise Stopped(f"stopped by {stop.signal.name} and saved at {where}; go on with: {again}", stop.signal)
                with everyone.checked():
                    if everyone.is_main and (scored := planned.objective.score()):
                        stage_scores.append({"stage": stage.name, "objective": stage.objective, "scores": scored})
        saved: list[str] = []
        with everyone.checked():
            if everyone.is_main:
                saved = save_results(folder, recipe, model, processor, [planned.objective for planned in stages])
                scores = score_answers(console, folder, model, collator, data) if asks_questions(recipe) else {}
                write_text(folder / "scores.json", json.dumps(scores | {"stages": stage_scores}, indent=2) + "\n")
                write_report(folder, plan.lines())
                write_text(folder / "finished.json", json.dumps({"identity": identity}) + "\n")
    left_out = [f"left out: {reason}" for reason in collator.unreadable.values()]
    for line in [*left_out, *score_lines(stage_scores), *saved]:
        console.print(line, markup=False)
    return folder


def _prepare(console: Console, recipe: Recipe, folder: Path) -> Prepared:
    with progress_bar(console) as bar:
        task = bar.add_task("prepare data", total=None)
        data = prepare(recipe.data, folder / "data", partial(_show, bar, task), asks_questions(recipe), recipe.workers)
        bar.update(task, completed=1, total=1)
    return data


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _open_log(path: Path, index: int, step: int) -> TextIO:
    """The log of a run that goes on after `step` of stage `index`: what came later in that stage will be done again."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:  # cut in the middle by a kill
            break
        if row["index"] != index or row["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
    return path.open("a", encoding="utf-8", buffering=1)


@contextmanager
def _reporting(
    console: Console, folder: Path, trackers: Trackers, run: StageRun, planned: PlannedStage, step: int, num_before: int
) -> Iterator[Callable[[Record], None]]:
    """A function that shows and logs each step of a stage that goes on after `step`; the stage's answers are logged too."""
    stage, index = planned.stage, run.index
    with (
        progress_bar(console) as bar,
        _open_log(folder / "log.jsonl", index, step) as log,
        trackers.stage(stage.name, index, step, num_before),
        _open_log(folder / "samples.jsonl", index, step) if stage.eval_every else nullcontext() as samples,
    ):
        if run.watch is not None:
            run.watch.file = samples
        pace = Pace(planned.num_steps - step, partial(console.print, markup=False))
        task = bar.add_task(f"train {stage.name}", total=planned.num_steps)
        yield partial(_report, bar, task, log, trackers, pace, index, stage.name)


def _report(
    bar: Progress, task: TaskID, log: TextIO, trackers: Trackers, pace: Pace, index: int, stage: str, record: Record
) -> None:
    numbers = {name: value for name, value in vars(record).items() if value is not None}
    log.write(json.dumps({"index": index, "stage": stage, **numbers}) + "\n")
    trackers.write(record)
    pace.step()
    bar.update(task, completed=record.step, description=f"train {stage}, loss {record.loss:.3f}")
