"""TensorBoard event files of a run, where TensorBoard is installed: OUT/tensorboard/K of stage K."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pal_audio.training.loop import Record

MISSING = "tensorboard: off, it is not installed: pip install 'pal-audio[train]'"


def plan_line(folder: Path) -> str:
    """Whether event files are written, in one line of the plan."""
    return f"tensorboard: on, event files in {folder / 'tensorboard'}" if installed() else MISSING


def installed() -> bool:
    return find_spec("tensorboard") is not None


class EventFiles:
    """Writes one stage's records; without TensorBoard it does nothing, which the plan has said.

    Args:
        folder: of the run.
        index: of the stage.
        step: what the run goes on after; later events of an earlier try are hidden by TensorBoard.
    """

    def __init__(self, folder: Path, index: int, step: int) -> None:
        self._writer: Any = None
        if installed():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard" / str(index)), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def write(self, record: Record) -> None:
        if self._writer is None:
            return
        values = {"loss": record.loss, "gradient_norm": record.gradient_norm, "seconds": record.seconds}
        values |= {f"learning_rate/{part}": rate for part, rate in record.learning_rates.items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, record.step)

    def __enter__(self) -> "EventFiles":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
