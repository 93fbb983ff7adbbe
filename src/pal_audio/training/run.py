"""`pal train`: recipe -> data -> model -> stages -> a finished folder with its scores.

OUT/recipe.json     the resolved recipe, versions       OUT/log.jsonl        one line a step
OUT/data/           composed sound and manifests        OUT/scores.json      held-out accuracy, with sound and muted
OUT/checkpoints-K/  of stage K                          OUT/answers.jsonl    every held-out answer beside the truth
OUT/final/          model and processor                 OUT/report.md        plan, scores, curves.png, ten answers
OUT/llm/            the LLM alone, after a `text` stage OUT/encoders/NAME/   one that a `ctc` or `tags` stage has trained
OUT/tensorboard/    event files, where it is installed  OUT/finished.json    written last
"""

import hashlib
import json
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import pal_audio
from pal_audio.data.collation import Collator
from pal_audio.data.folder import LOCK, locked
from pal_audio.data.frame_cache import FrameCache, check_cache
from pal_audio.data.manifest import write_text
from pal_audio.data.prepare import Prepared, check_places, prepare
from pal_audio.data.texts import Document
from pal_audio.errors import PalError, Stopped
from pal_audio.model.building import check_spec
from pal_audio.training.checkpoint import full_disk_named
from pal_audio.training.interrupt import stop_request
from pal_audio.training.loop import Record, StageRun
from pal_audio.training.outcome import build, save_results, score_lines, texts_of
from pal_audio.training.plan import PlannedStage, plan_lines, plan_stages
from pal_audio.training.processes import join
from pal_audio.training.recipe import Recipe, load_recipe
from pal_audio.training.report import write_report
from pal_audio.training.scores import accuracy, answer_all
from pal_audio.training.tensorboard import EventFiles

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
    check_places(recipe.data)
    if recipe.adapter is not None:
        recipe.adapter.check()
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    check_spec(recipe.model)
    if recipe.frame_cache is not None:
        check_cache(recipe.frame_cache, recipe.model.audio_config().encoders)
    identity = _identity(recipe)
    if folder.exists() and not folder.is_dir():
        raise PalError(f"{folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with full_disk_named(folder), everyone.loss_named(), ExitStack() as held:
        with everyone.main_first():
            if everyone.is_main:
                held.enter_context(locked(folder))
                _prepare_folder(folder, identity, resume, overwrite)
        if everyone.main_says((folder / "finished.json").is_file()):
            console.print(f"{folder}: finished already")
            return folder
        described = {"identity": identity, "recipe": recipe.model_dump(mode="json"), "versions": _versions()}
        if everyone.is_main:
            write_text(folder / "recipe.json", json.dumps(described, indent=2) + "\n")
        with everyone.main_first(), _bar(console) as bar:
            task = bar.add_task("prepare data", total=None)
            answers = any(stage.objective == "answer" for stage in recipe.stages)
            show = partial(_show, bar, task)
            data = prepare(recipe.data, folder / "data", show, answers)
            bar.update(task, completed=1, total=1)
        torch.manual_seed(recipe.seed)
        with everyone.main_first():  # what it fetches is then there for the others
            model, processor = build(recipe, texts_of(data.sample()))
        ready = None if recipe.frame_cache is None else FrameCache(recipe.frame_cache, model.encoders)
        collator = Collator(processor, frames=ready)  # type: ignore[arg-type]  # of parts: only what their stages ask for
        stages = plan_stages(recipe, model, collator, data)
        plan = plan_lines(folder, recipe, model, data, stages)
        for line in plan:
            console.print(line, markup=False)
        stage_scores: list[dict[str, Any]] = []
        with stop_request(0.0 if everyone.num == 1 else _PATIENCE_S) as stop:
            stopping = everyone.stopping(stop)
            for index, planned in enumerate(stages):
                stage, places = planned.stage, folder / f"checkpoints-{index}"
                run = StageRun(stage, index, recipe.seed, places, identity, recipe.precision, recipe.parallel)
                step = run.resumable_step() if resume else 0
                with _reporting(console, folder, index, planned, step) if everyone.is_main else nullcontext() as report:
                    run.run(planned.objective, planned.batches, planned.num_steps, resume, report, stopping)
                if stopping():
                    assert stop.signal is not None
                    where = f"stage {stage.name!r}, step {run.resumable_step()}"
                    again = _again(recipe_path, overrides, folder)
                    raise Stopped(f"stopped by {stop.signal.name} and saved at {where}; go on with: {again}", stop.signal)
                with everyone.checked():
                    if everyone.is_main and (scored := planned.objective.score()):
                        stage_scores.append({"stage": stage.name, "objective": stage.objective, "scores": scored})
        saved: list[str] = []
        with everyone.checked():
            if everyone.is_main:
                scores = _score(console, folder, model, collator, data) if answers else {}
                write_text(folder / "scores.json", json.dumps(scores | {"stages": stage_scores}, indent=2) + "\n")
                saved = save_results(folder, recipe, model, processor)
                write_report(folder, plan)
                write_text(folder / "finished.json", json.dumps({"identity": identity}) + "\n")
    for line in [*score_lines(stage_scores), *saved]:
        console.print(line, markup=False)
    return folder


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


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


@contextmanager
def _reporting(
    console: Console, folder: Path, index: int, planned: PlannedStage, step: int
) -> Iterator[Callable[[Record], None]]:
    """A function that shows and logs each step of a stage that goes on after `step`."""
    name = planned.stage.name
    with (
        _bar(console) as bar,
        _open_log(folder / "log.jsonl", index, step) as log,
        EventFiles(folder, index, step) as events,
    ):
        task = bar.add_task(f"train {name}", total=planned.num_steps)
        yield partial(_report, bar, task, log, events, index, name)


def _report(bar: Progress, task: TaskID, log: TextIO, events: EventFiles, index: int, stage: str, record: Record) -> None:
    log.write(json.dumps({"index": index, "stage": stage, **vars(record)}) + "\n")
    events.write(record)
    bar.update(task, completed=record.step, description=f"train {stage}, loss {record.loss:.3f}")


def _score(console: Console, folder: Path, model: Any, collator: Collator, data: Prepared) -> dict[str, Any]:
    test_set = [example for example in data.test if not isinstance(example, Document)]
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
    table = Table("task", "questions", "right", "muted", "best guess", title="held-out questions")
    for name, share in right.items():
        num = sum(name in ("all", answer.task) for answer in heard)
        guess = data.chance if name == "all" else data.chance_by_task[name]
        table.add_row(name, str(num), f"{share:.1%}", f"{right_muted[name]:.1%}", f"{guess:.1%}")
    console.print(table)
    return scores


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
    return hashlib.sha256(recipe.model_dump_json(exclude={"parallel"}).encode()).hexdigest()[:16]


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


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "accelerate", "peft", "numpy", "soundfile", "soxr")
    return {"python": platform.python_version(), "pal-audio": pal_audio.__version__, **{name: version(name) for name in packages}}


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
