"""`pal train`: recipe -> data -> model -> stages -> a finished folder with its scores.

OUT/recipe.json     the resolved recipe, provenance     OUT/log.jsonl        one line a step
OUT/data/           composed sound and manifests        OUT/scores.json      held-out accuracy, with sound and muted
OUT/checkpoints-K/  of stage K                          OUT/answers.jsonl    every held-out answer beside the truth
OUT/final/          model and processor                 OUT/report.md        plan, scores, curves.png, ten answers
OUT/tensorboard/    event files, where it is installed  OUT/samples.jsonl    answers while it trained
OUT/finished.json   written last
"""

import hashlib
import json
import shlex
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pal_audio.data.collation import Collator
from pal_audio.data.folder import LOCK, locked
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import write_text
from pal_audio.data.prepare import Prepared, prepare
from pal_audio.errors import PalError, Stopped
from pal_audio.model import PalForConditionalGeneration, PalProcessor, build_model
from pal_audio.model.building import build_processor, skeleton
from pal_audio.model.export import save_folder, save_trained
from pal_audio.model.trained import bases_of
from pal_audio.training.checkpoint import full_disk_named
from pal_audio.training.fit import check_context, check_disk, check_memory
from pal_audio.training.interrupt import stop_request
from pal_audio.training.loop import Record, StageRun
from pal_audio.training.memory import Device
from pal_audio.training.plan import PlannedStage, make_plan, plan_stages
from pal_audio.training.preflight import check_recipe, run_folder, texts_of
from pal_audio.training.provenance import check_data, describe_run
from pal_audio.training.recipe import Recipe, load_recipe
from pal_audio.training.report import write_report
from pal_audio.training.scores import accuracy, answer_all
from pal_audio.training.trackers import Trackers, chosen, tracking
from pal_audio.training.watch import Pace, Watch


def train(
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Run a recipe to its end.

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
    """
    console = console or Console(stderr=True)
    recipe = load_recipe(recipe_path, overrides)
    folder = run_folder(recipe, out)
    check_recipe(recipe)
    device = Device.here()
    check_memory(recipe, skeleton(recipe.model, recipe.adapter), Collator(build_processor(recipe.model)), device)
    identity = _identity(recipe)
    if folder.exists() and not folder.is_dir():
        raise PalError(f"{folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with full_disk_named(folder), locked(folder):
        _prepare_folder(folder, identity, resume, overwrite)
        if (folder / "finished.json").is_file():
            console.print(f"{folder}: finished already")
            return folder
        describe_run(folder, recipe, recipe_path, identity, device)
        with _bar(console) as bar:
            task = bar.add_task("prepare data", total=None)
            data = prepare(recipe.data, folder / "data", lambda done, total: bar.update(task, completed=done, total=total))
            bar.update(task, completed=1, total=1)
        torch.manual_seed(recipe.seed)
        model, processor = build_model(recipe.model, texts_of(data), recipe.adapter)
        ready = None if recipe.frame_cache is None else FrameCache(recipe.frame_cache, model.encoders)
        check_data(folder, recipe, data, ready)
        collator = Collator(processor, frames=ready)
        stages = plan_stages(recipe, model, collator, data)
        plan = make_plan(folder, recipe, model, processor, data, stages, device)
        plan.show(console)
        check_context(model, processor, stages, collator)
        check_disk(folder, plan)
        names = chosen(recipe.trackers)
        with stop_request() as stop, tracking(folder, names, recipe.model_dump(mode="json")) as trackers:
            for index, planned in enumerate(stages):
                stage = planned.stage
                run = StageRun(stage, index, recipe.seed, folder / f"checkpoints-{index}", identity, recipe.precision)
                step = run.resumable_step() if resume else 0
                with (
                    _bar(console) as bar,
                    _open_log(folder / "log.jsonl", index, step) as log,
                    trackers.stage(stage.name, index, step, sum(earlier.num_steps for earlier in stages[:index])),
                    _open_log(folder / "samples.jsonl", index, step) if stage.eval_every else nullcontext() as samples,
                ):
                    run.watch = Watch(stage, index, planned.objective, data.test, recipe.seed, samples, console)
                    pace = Pace(planned.num_steps - step, partial(console.print, markup=False))
                    task = bar.add_task(f"train {stage.name}", total=planned.num_steps)
                    report = partial(_report, bar, task, log, trackers, pace, index, stage.name)
                    run.run(planned.objective, planned.batches, planned.num_steps, resume, report, stop.made)
                if stop.signal is not None:
                    where = f"stage {stage.name!r}, step {run.resumable_step()}"
                    again = _again(recipe_path, overrides, folder)
                    raise Stopped(f"stopped by {stop.signal.name} and saved at {where}; go on with: {again}", stop.signal)
        _score(console, folder, model, collator, data)
        _save(recipe, model, processor, stages, folder / "final")
        write_report(folder, plan.lines())
        write_text(folder / "finished.json", json.dumps({"identity": identity}) + "\n")
    console.print(f"model: {folder / 'final'}")
    return folder


def _save(
    recipe: Recipe, model: PalForConditionalGeneration, processor: PalProcessor, stages: list[PlannedStage], target: Path
) -> None:
    if recipe.save == "all":
        save_folder(model, processor, target)
        return
    trained: list[torch.nn.Parameter] = []
    for planned in stages:
        planned.objective.parameter_groups()
        trained += [parameter for parameter in model.parameters() if parameter.requires_grad]
    bases = bases_of(recipe.model.llm, recipe.model.revision, recipe.model.audio_config())
    save_trained(model, processor, target, bases, trained)


def _again(recipe_path: str | Path, overrides: list[str] | None, folder: Path) -> str:
    """The command that goes on with a stopped run."""
    settings = [word for override in overrides or [] for word in ("--set", override)]
    return shlex.join(["pal", "train", str(recipe_path), *settings, "--out", str(folder), "--resume"])


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


def _report(
    bar: Progress, task: TaskID, log: TextIO, trackers: Trackers, pace: Pace, index: int, stage: str, record: Record
) -> None:
    numbers = {name: value for name, value in vars(record).items() if value is not None}
    log.write(json.dumps({"index": index, "stage": stage, **numbers}) + "\n")
    trackers.write(record)
    pace.step()
    bar.update(task, completed=record.step, description=f"train {stage}, loss {record.loss:.3f}")


def _score(console: Console, folder: Path, model: PalForConditionalGeneration, collator: Collator, data: Prepared) -> None:
    test_set = data.test
    model.to("cpu" if not torch.cuda.is_available() else "cuda").eval()
    with _bar(console) as bar:
        task = bar.add_task("held-out questions", total=2 * len(test_set))
        heard = answer_all(model, collator, test_set, progress=lambda done: bar.advance(task, done))
        muted = answer_all(model, collator, test_set, muted=True, progress=lambda done: bar.advance(task, done))
    right, right_muted = accuracy(heard), accuracy(muted)
    rows = [{**vars(a), "right": a.right, "muted_answer": m.answer} for a, m in zip(heard, muted, strict=True)]
    write_text(folder / "answers.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    scores = {
        "num": len(test_set),
        "accuracy": right,
        "muted": right_muted,
        "chance": data.chance,
        "chance_by_task": data.chance_by_task,
    }
    write_text(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    table = Table("task", "questions", "right", "muted", "best guess", title="held-out questions")
    for name, share in right.items():
        num = sum(name in ("all", answer.task) for answer in heard)
        guess = data.chance if name == "all" else data.chance_by_task[name]
        table.add_row(name, str(num), f"{share:.1%}", f"{right_muted[name]:.1%}", f"{guess:.1%}")
    console.print(table)


def resolved_recipe(run: Path) -> Recipe:
    """The recipe that a run was made by, overrides included.

    Raises:
        PalError: the folder holds no run.
    """
    try:
        return Recipe.model_validate(json.loads((run / "recipe.json").read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PalError(f"{run}: no run here (recipe.json is missing or unreadable)") from error


def _identity(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.model_dump_json(exclude={"trackers"}).encode()).hexdigest()[:16]


def _prepare_folder(folder: Path, identity: str, resume: bool, overwrite: bool) -> None:
    held = [item for item in folder.iterdir() if item.name != LOCK]
    if held and overwrite:
        if not (folder / "recipe.json").is_file():
            raise PalError(f"{folder} holds something that is no run; delete it yourself or choose another folder")
        for item in held:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    elif held and not resume:
        raise PalError(f"{folder} is not empty; --resume goes on with it, --overwrite replaces it")
    elif held:
        try:
            found = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PalError(f"{folder} holds no run that can be resumed (recipe.json is missing or unreadable)") from error
        if found != identity:
            raise PalError(f"{folder} was begun with another recipe; choose another folder, or --overwrite")


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
