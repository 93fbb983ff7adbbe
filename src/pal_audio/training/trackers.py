"""Where a run's numbers go beside log.jsonl: TensorBoard, Weights & Biases, trackio; the last two share one interface.

They are called directly: accelerate's trackers need one Accelerator for the whole run and know nothing of a step that a stopped
run goes on after. Source: our choice.
"""

import importlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.training.loop import Record
from pal_audio.training.tensorboard import EventFiles

Name = Literal["tensorboard", "wandb", "trackio"]
INSTALL: dict[Name, str] = {
    "tensorboard": "pip install 'pal-audio[train]'",
    "wandb": "pip install wandb",
    "trackio": "pip install trackio",
}
PROJECT = "pal-audio"


def chosen(asked: Sequence[Name] | None) -> list[Name]:
    """The trackers of a run: those asked for, or TensorBoard where it is installed.

    Raises:
        PalError: one that was asked for is not installed.
    """
    if asked is None:
        return ["tensorboard"] if installed("tensorboard") else []
    for name in asked:
        if not installed(name):
            raise PalError(f"trackers: {name} is not installed: {INSTALL[name]}, or take it out of `trackers`")
    return list(asked)


def installed(name: str) -> bool:
    return find_spec(name) is not None


def plan_line(folder: Path, asked: Sequence[Name] | None) -> str:
    """Which trackers a run writes to, in one line of the plan."""
    names = chosen(asked)
    if asked is None and not names:
        return f"tensorboard: off, it is not installed: {INSTALL['tensorboard']}"
    where = {"tensorboard": f"event files in {folder / 'tensorboard'}"}
    return "; ".join(f"{name}: on, {where.get(name, f'project {PROJECT}')}" for name in names) or "trackers: none"


class Trackers:
    """The trackers of a run, one stage at a time.

    Args:
        folder: of the run.
        names: of `chosen`.
        modules: wandb and trackio, as far as they are among them, with a run begun.
    """

    def __init__(self, folder: Path, names: Sequence[Name], modules: Sequence[Any]) -> None:
        self._folder, self._names, self._modules = folder, names, modules
        self._events: EventFiles | None = None
        self._stage, self._num_before = "", 0

    @contextmanager
    def stage(self, name: str, index: int, step: int, num_before: int) -> Iterator[None]:
        """Take the records of a stage.

        Args:
            name: of the stage.
            index: its number.
            step: what the run goes on after.
            num_before: steps of the stages before it: on the web, steps count on over stages.
        """
        self._stage, self._num_before = name, num_before
        self._events = EventFiles(self._folder, index, step) if "tensorboard" in self._names else None
        try:
            yield
        finally:
            if self._events is not None:
                self._events.close()

    def write(self, record: Record) -> None:
        """Pass on the numbers of a step."""
        values = {"loss": record.loss, "gradient_norm": record.gradient_norm, "seconds": record.seconds}
        values |= {f"learning_rate/{part}": rate for part, rate in record.learning_rates.items()}
        if record.held_out_loss is not None:
            values["held_out_loss"] = record.held_out_loss
        if self._events is not None:
            self._events.write(record.step, values)
        for module in self._modules:
            numbers = {f"{self._stage}/{name}": value for name, value in values.items()}
            module.log(numbers, step=self._num_before + record.step)


@contextmanager
def tracking(folder: Path, names: Sequence[Name], recipe: dict[str, Any]) -> Iterator[Trackers]:
    """Begin a run in wandb and trackio where they are asked for, and end it when this is left.

    A run that goes on after a stop goes on there too: its name there lies in OUT/trackers.json.

    Args:
        folder: of the run.
        names: of `chosen`.
        recipe: resolved; kept with the run.
    """
    with ExitStack() as stack:
        modules = []
        for name in names:
            if name == "tensorboard":
                continue
            module = importlib.import_module(name)
            run = _run_name(folder, recipe["name"])
            options: dict[str, Any] = {"project": PROJECT, "name": run, "config": recipe, "resume": "allow"}
            if name == "wandb":  # trackio finds a run by its name
                options |= {"id": run, "dir": str(folder)}
            module.init(**options)
            stack.callback(module.finish)
            modules.append(module)
        yield Trackers(folder, names, modules)


def _run_name(folder: Path, name: str) -> str:
    """The recipe's name with something of this folder's own."""
    file = folder / "trackers.json"
    if not file.is_file():
        write_text(file, json.dumps({"run": f"{name}-{uuid.uuid4().hex[:8]}"}) + "\n")
    found: str = json.loads(file.read_text(encoding="utf-8"))["run"]
    return found
