"""An evaluation from start to end: tasks to items, items to answers, answers to scores and a report."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pal_audio
from pal_audio.data.folder import locked
from pal_audio.errors import PalError, Stopped
from pal_audio.evaluation import store
from pal_audio.evaluation.answerer import Answerer
from pal_audio.evaluation.asking import Asker
from pal_audio.evaluation.conditions import CONDITIONS, Condition, Donors
from pal_audio.evaluation.hearing import HearAll, clips_of
from pal_audio.evaluation.items import Item, Method, hash_items
from pal_audio.evaluation.judging import METHODS_OF, check_extras
from pal_audio.evaluation.shards import shard_folder
from pal_audio.evaluation.store import RunInfo, TaskInfo
from pal_audio.evaluation.tasks import Task, known_task
from pal_audio.evaluation.tasks.base import Place
from pal_audio.training.interrupt import stop_request


@dataclass
class Request:
    """What is asked for.

    Attributes:
        tasks: names, in order.
        data: ROOT by task name; under "" the folder that holds all others by their names.
        splits, prompts: by task name, where they are not the task's own.
        methods: for every task that knows them; None = each task's own.
        conditions: "real" is always among them.
        roots: folders outside a manifest's own that its sound may lie in.
        limit: most items of a task, evenly spaced over it.
    """

    tasks: list[str]
    data: dict[str, Path] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    methods: list[Method] | None = None
    conditions: list[Condition] = field(default_factory=lambda: list(CONDITIONS))
    roots: tuple[Path, ...] = ()
    limit: int | None = None


@dataclass
class Planned:
    """What can be asked: tasks with their items, and tasks that cannot, with the reason."""

    infos: list[TaskInfo]
    items: dict[str, list[Item]]
    left_out: dict[str, str]


def plan(request: Request) -> Planned:
    """Read the sets of the tasks that are asked for.

    Raises:
        PalError: a name or option is wrong, or no task can be asked. A set that is not there, or is of another layout, leaves its
            task out.
    """
    tasks = [known_task(name) for name in request.tasks]
    for option, given in (("--data", request.data), ("--split", request.splits), ("--prompt", request.prompts)):
        stray = next((name for name in given if name and name not in request.tasks), None)
        if stray is not None:
            raise PalError(f"{option} {stray}=...: {stray} is not among --tasks {','.join(request.tasks)}")
    for task in tasks:
        _methods(task, request.methods)
    planned = Planned([], {}, {})
    for task in tasks:
        try:
            items = task.items(_place(task, request))
        except PalError as error:
            planned.left_out[task.name] = str(error)
            continue
        chosen = _limited(items, request.limit)
        if task.kind == "caption" and len(chosen) < 2:
            planned.left_out[task.name] = f"{task.name}: CIDEr-D takes its word weights from the set, so two items are needed"
            continue
        planned.infos.append(_info(task, chosen, len(items), request))
        planned.items[task.name] = chosen
    if not planned.infos:
        reasons = "; ".join(planned.left_out.values())
        raise PalError(f"no task can be asked: {reasons}")
    check_extras(planned.infos)
    return planned


def ask(
    answerer: Answerer,
    planned: Planned,
    out: Path,
    batch_size: int = 16,
    device: str = "cpu",
    shard: tuple[int, int] = (0, 1),
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    num_workers: int = 0,
) -> Path:
    """Ask everything and write the answers.

    Args:
        answerer: who is asked.
        planned: see `plan`.
        out: OUT.
        batch_size: items that are asked together.
        device: noted, since answers may differ between devices.
        shard: this process's number and how many there are; it takes every so-manieth batch.
        resume, overwrite: what to do where OUT holds an evaluation.
        progress: called with answers done and answers in all.
        num_workers: processes that read sound while the model answers; they change no answer.

    Returns:
        The folder with the answers: OUT, or that of the shard.

    Raises:
        PalError: OUT holds something else.
        Stopped: a signal asked for the end; the batch at hand is saved.
    """
    from pal_audio.data.workers import in_workers  # torch, without which mistakes in what is asked for are found at once

    index, num_shards = shard
    folder = shard_folder(out, index, num_shards)
    info = RunInfo(
        pal_version=pal_audio.__version__,
        model=answerer.name,
        fingerprint=answerer.fingerprint,
        device=device.partition(":")[0],  # shards have a number each
        batch_size=batch_size,
        num_shards=num_shards,
        tasks=planned.infos,
        left_out=planned.left_out,
        rendered={
            task.name: {
                method: answerer.rendered(planned.items[task.name][0].asked(task.prompts[method])) for method in task.methods
            }
            for task in planned.infos
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        store.begin(folder, info, planned.items, resume, overwrite)
        own = store.batches(info, planned.items)[index::num_shards]
        path = folder / store.ANSWERS
        num_done = store.resume_point(path, own)
        ends = list(itertools.accumulate((len(batch.keys) for batch in own), initial=0))
        donors = {name: Donors(items) for name, items in planned.items.items()}
        asker = Asker(answerer, donors)
        coming = (clips_of(batch, donors[batch.task.name]) for batch in own[num_done:])
        with stop_request() as stop, closing(in_workers(HearAll(answerer.ear()), coming, num_workers)) as heard:
            for number in range(num_done, len(own)):
                if progress is not None:
                    progress(ends[number], ends[-1])
                store.append(path, asker.ask(own[number], next(heard)))
                if stop.signal is not None and number + 1 < len(own):
                    raise Stopped(f"stopped, {number + 1} of {len(own)} batches are saved; go on with --resume", stop.signal)
        if progress is not None:
            progress(ends[-1], ends[-1])
    return folder


def _place(task: Task, request: Request) -> Place:
    split = request.splits.get(task.name, task.splits[0])
    if task.name in request.data:
        return Place(request.data[task.name], split, request.roots)
    if "" not in request.data:
        raise PalError(f"{task.name}: say where it is, --data {task.name}=ROOT; it needs {task.needs} (from {task.archives})")
    common = request.data[""]
    return Place(common / task.name if (common / task.name).exists() else common, split, request.roots)


def _methods(task: Task, wanted: Sequence[Method] | None) -> list[Method]:
    if wanted is None:
        return list(task.methods)
    possible = [method for method in wanted if method in METHODS_OF[task.kind]]
    if not possible:
        raise PalError(f"--method {','.join(wanted)}: {task.name} can be answered by {', '.join(METHODS_OF[task.kind])}")
    return possible


def _info(task: Task, items: list[Item], num_in_set: int, request: Request) -> TaskInfo:
    methods = _methods(task, request.methods)
    prompts = {method: request.prompts.get(task.name, task.prompt_of(method)) for method in methods}
    left_out = {}
    conditions = ["real", *(name for name in CONDITIONS if name in request.conditions and name != "real")]
    if not any(item.clips for item in items):
        left_out = dict.fromkeys(conditions[1:], "no item has sound")
    elif not Donors(items).possible and "shuffled" in conditions:
        left_out = {"shuffled": "all sound comes from one source"}
    settings = {
        "name": task.name,
        "kind": task.kind,
        "split": request.splits.get(task.name, task.splits[0]),
        "version": task.version,
        "methods": methods,
        "prompts": prompts,
        "max_new_tokens": task.max_new_tokens,
        "conditions": [name for name in conditions if name not in left_out],
    }
    labels = items[0].choices if task.kind in ("classify", "tags") else []
    rest = {"conditions_left_out": left_out, "num_items": len(items), "num_in_set": num_in_set, "labels": labels}
    return TaskInfo.model_validate({**settings, **rest, "hash": hash_items(items, settings)})


def _limited(items: list[Item], limit: int | None) -> list[Item]:
    """At most so many, evenly spaced: sets are often sorted by class."""
    if limit is None or limit >= len(items):
        return items
    return [items[number * len(items) // limit] for number in range(limit)]
