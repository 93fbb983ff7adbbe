"""TensorBoard event files of a run: OUT/tensorboard/K of stage K."""

from pathlib import Path
from typing import Any


class EventFiles:
    """Writes one stage's numbers.

    Args:
        folder: of the run.
        index: of the stage.
        step: what the run goes on after; later events of an earlier try are hidden by TensorBoard.
    """

    def __init__(self, folder: Path, index: int, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard" / str(index)), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
