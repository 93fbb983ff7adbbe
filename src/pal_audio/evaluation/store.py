"""An evaluation's folder.

    OUT/run.json        model, settings, tasks with their hashes; what another evaluation in the same folder is refused by
    OUT/items.jsonl     every item asked, with its truth: scores are made from here, the data are not needed again
    OUT/answers.jsonl   one line for each item and condition, in order, batch by batch
    OUT/shard-I-of-N/   the same of one process; see `shards.py`
    OUT/scores.json, OUT/report.md, OUT/*.png

A batch is written whole, synced, before the next is asked. What follows the last whole batch is cut off on resume, and batches
are always of the same items, so a resumed evaluation ends with the same bytes as one that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pal_audio.config import StrictConfig, one_line
from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.evaluation.conditions import Condition
from pal_audio.evaluation.items import Item, Kind, Method

FORMAT = 1
RUN, ITEMS, ANSWERS = "run.json", "items.jsonl", "answers.jsonl"
MADE = (RUN, ITEMS, ANSWERS, "scores.json", "report.md", "external.json", "mmau.json", "mmar.json")


class TaskInfo(StrictConfig):
    """What was asked of a task, and how. `hash` is of all of it and the items; see `items.hash_items`."""

    name: str
    kind: Kind
    split: str
    version: int
    methods: list[Method] = Field(min_length=1)
    prompts: dict[Method, str | None]  # None = each item's own question
    max_new_tokens: int
    conditions: list[Condition] = Field(min_length=1)
    conditions_left_out: dict[str, str] = Field(default_factory=dict)
    num_items: int
    num_in_set: int
    labels: list[str] = Field(default_factory=list)  # of a classification; they are the choices of each of its items
    hash: str


class RunInfo(StrictConfig):
    """What `run.json` holds."""

    format: int = FORMAT
    pal_version: str
    model: str
    fingerprint: str
    device: str
    batch_size: int
    num_shards: int = 1
    tasks: list[TaskInfo] = Field(min_length=1)
    left_out: dict[str, str] = Field(default_factory=dict)  # tasks that could not be asked
    rendered: dict[str, dict[Method, str]] = Field(default_factory=dict)  # of each task the first prompt as the model reads it


class Answer(StrictConfig):
    """A line of `answers.jsonl`. `fault` says why there is no answer."""

    task: str
    condition: Condition
    id: str
    answers: dict[Method, str] = Field(default_factory=dict)
    scores: list[float] = Field(default_factory=list)  # of the item's choices, for `rank`
    fault: str = ""

    def line(self) -> str:
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Batch:
    """Items that are asked together, under all conditions of their task."""

    task: TaskInfo
    items: list[Item]

    @property
    def keys(self) -> list[tuple[str, str, str]]:
        """Task, condition and id of each line that it gives."""
        return [(self.task.name, condition, item.id) for condition in self.task.conditions for item in self.items]


def batches(info: RunInfo, items: dict[str, list[Item]]) -> list[Batch]:
    """All batches in order."""
    return [
        Batch(task, items[task.name][start : start + info.batch_size])
        for task in info.tasks
        for start in range(0, task.num_items, info.batch_size)
    ]


def begin(folder: Path, info: RunInfo, items: dict[str, list[Item]], resume: bool, overwrite: bool) -> None:
    """Make a folder ready: new, its leavings taken away, or the same evaluation found in it.

    Raises:
        PalError: something else is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise PalError(f"OUT {folder} is not a folder")
    there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
    if (folder / RUN).is_file() and resume:
        refuse_another(folder, read_run(folder), info)
        return
    if there and not overwrite and not (resume and there == [ITEMS]):
        mend = "go on with --resume, or replace it with --overwrite" if RUN in there else "choose a new folder"
        raise PalError(f"OUT {folder} is not empty ({there[0]}, ...); {mend}")
    if there not in ([], [ITEMS]) and RUN not in there:  # items alone: a start that was killed
        raise PalError(f"OUT {folder} holds no evaluation ({there[0]}, ...), so nothing is replaced; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in MADE:
        (folder / name).unlink(missing_ok=True)
    for picture in folder.glob("*.png"):
        picture.unlink()
    lines = [
        json.dumps({"task": task.name, **item.model_dump(mode="json", exclude={"choices"} if task.labels else None)})
        for task in info.tasks
        for item in items[task.name]
    ]
    write_text(folder / ITEMS, "".join(line + "\n" for line in lines))
    write_text(folder / RUN, info.model_dump_json(indent=2) + "\n")  # last: it says that the items are whole


def refuse_another(folder: Path, there: RunInfo, asked: RunInfo) -> None:
    """That a folder holds the evaluation that is asked for.

    Raises:
        PalError: it holds another; the first difference is named.
    """
    before, now = {task.name: task for task in there.tasks}, {task.name: task for task in asked.tasks}
    what = None
    if there.fingerprint != asked.fingerprint:
        what = f"of another model ({there.model})"
    elif list(before) != list(now):
        what = f"of other tasks ({', '.join(before)})"
    elif changed := [name for name, task in now.items() if task.hash != before[name].hash]:
        what = f"of another {changed[0]}: its items, prompt, methods, conditions or version differ"
    elif there.num_shards != asked.num_shards:
        what = f"in {there.num_shards} shards"
    elif there.batch_size != asked.batch_size:
        what = f"in batches of {there.batch_size}"
    elif there.device != asked.device:
        what = f"made on {there.device}"
    if what is not None:
        raise PalError(f"OUT {folder} holds an evaluation {what}; choose a new folder, or replace it with --overwrite")


def read_run(folder: Path) -> RunInfo:
    """The `run.json` of a folder.

    Raises:
        PalError: there is none, or it is damaged.
    """
    path = folder / RUN
    try:
        info = RunInfo.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise PalError(f"{folder}: no evaluation here ({error.strerror}: {RUN}); make one by `pal eval`") from error
    except ValidationError as error:
        raise PalError(f"{path}: damaged ({one_line(error)})") from error
    except ValueError as error:
        raise PalError(f"{path}: damaged, it is not JSON") from error
    if info.format != FORMAT:
        raise PalError(f"{path}: format {info.format}, this version reads {FORMAT}")
    return info


def read_items(folder: Path, info: RunInfo) -> dict[str, list[Item]]:
    """Items of each task, as they were asked."""
    items: dict[str, list[Item]] = {task.name: [] for task in info.tasks}
    labels = {task.name: task.labels for task in info.tasks}
    for place, values in _rows(folder / ITEMS):
        try:
            name = values.pop("task")
            items[name].append(Item.model_validate(values | ({"choices": labels[name]} if labels[name] else {})))
        except (KeyError, ValidationError) as error:
            raise PalError(f"{place}: no item of this evaluation") from error
    for task in info.tasks:
        if len(items[task.name]) != task.num_items:
            raise PalError(f"{folder / ITEMS}: {len(items[task.name])} items of {task.name}, {RUN} says {task.num_items}")
    return items


def read_answers(path: Path) -> list[Answer]:
    """All lines of an answers file.

    Raises:
        PalError: a line is damaged.
    """
    answers = []
    for place, values in _rows(path):
        try:
            answers.append(Answer.model_validate(values))
        except ValidationError as error:
            raise PalError(f"{place}: {one_line(error)}") from error
    return answers


def resume_point(path: Path, expected: Sequence[Batch]) -> int:
    """Cut an answers file after its last whole batch, and say how many batches it holds.

    Raises:
        PalError: it holds other lines than those batches give.
    """
    if not path.is_file():
        return 0
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    num_done = at = size = 0
    for batch in expected:
        found = lines[at : at + len(batch.keys)]
        for key, line in zip(batch.keys, found, strict=False):
            try:
                answer = Answer.model_validate(json.loads(line))
            except (ValueError, ValidationError) as error:
                raise PalError(
                    f"{path}: line {at + 1} or one after it is damaged; replace the folder with --overwrite"
                ) from error
            if (answer.task, answer.condition, answer.id) != key:
                raise PalError(f"{path}: {answer.task} {answer.id} stands where {key[0]} {key[2]} should")
        if len(found) < len(batch.keys):
            break
        num_done, at, size = num_done + 1, at + len(found), size + sum(map(len, found))
    if size < len(content):
        with open(path, "r+b") as file:
            file.truncate(size)
    return num_done


def append(path: Path, answers: Sequence[Answer]) -> None:
    """Add a batch's lines, synced."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write("".join(answer.line() for answer in answers))
        file.flush()
        os.fsync(file.fileno())


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each line."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                try:
                    values = json.loads(line)
                except ValueError as error:
                    raise PalError(f"{path}, line {number}: not JSON; the file is damaged or unfinished") from error
                yield f"{path}, line {number}", values
    except OSError as error:
        raise PalError(f"{path}: cannot be read: {error.strerror}") from error
