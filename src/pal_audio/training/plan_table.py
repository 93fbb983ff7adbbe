"""The plan of a run, as a table for people, lines for the report, or JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pal_audio.data.preview import Preview
from pal_audio.training.memory import Device, Memory, size_text

_NUM_SHOWN = 60  # supervised tokens; a text has a thousand


@dataclass(frozen=True)
class StagePlan:
    """What one stage will do: parameters by part, their share of all, and memory of its largest batch (no batch known: without
    activations); `notes` are the objective's own."""

    name: str
    objective: str
    trained: dict[str, int]
    num_trained: int
    num_parameters: int
    learning_rates: dict[str, float]
    num_steps: int
    epochs: float | None
    batch: str
    memory: Memory
    disk_bytes: int  # of its checkpoints, at most
    notes: list[str]


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    parameters: dict[str, int]
    num_train: int
    num_test: int
    adapter: str | None
    stages: list[StagePlan]
    example: Preview | None
    device: Device
    disk_bytes: int
    tracking: str
    num_processes: int
    parallel: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        stages = [asdict(stage) | {"memory": stage.memory.as_dict()} for stage in self.stages]
        return asdict(self) | {"stages": stages}

    def lines(self) -> list[str]:
        """The plan for the report."""
        lines = [f"model: {', '.join(f'{name} {count:,}' for name, count in self.parameters.items())} parameters"]
        lines.append(f"data: {self.num_train} examples to train on, {self.num_test} held out")
        if self.adapter is not None:
            lines.append(f"adapter: {self.adapter}")
        for stage in self.stages:
            rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.learning_rates.items())
            lines.append(f"stage {stage.name}: {stage.num_steps} steps of {stage.batch}; learning rates: {rates}")
            share = (
                f"{stage.num_trained:,} of {stage.num_parameters:,} parameters ({stage.num_trained / stage.num_parameters:.1%})"
            )
            lines.append(f"stage {stage.name} trains {share}; memory about {size_text(stage.memory.total)}")
            lines += [f"stage {stage.name}: {note}" for note in stage.notes]
        sharing = "" if self.num_processes == 1 else f", {self.num_processes} processes by {self.parallel}"
        lines.append(f"device: {self.device.name} ({self.device.type}) with {size_text(self.device.memory)}{sharing}")
        return [*lines, self.tracking]

    def show(self, console: Console) -> None:
        """The plan for people: a table of stages, the first supervised example, and what is needed of the machine."""
        before, after = self.lines()[: 2 + (self.adapter is not None)], self.lines()[-1]
        for line in before:
            console.print(line, markup=False)
        table = Table("stage", "trains", "of all", "steps", "epochs", "batch", "memory", title="plan")
        for stage in self.stages:
            parts = "\n".join(f"{part} {count:,}" for part, count in stage.trained.items())
            epochs = "" if stage.epochs is None else f"{stage.epochs:.3g}"
            share = f"{stage.num_trained:,}\n{stage.num_trained / stage.num_parameters:.1%}"
            memory = f"about {size_text(stage.memory.total)}"
            table.add_row(escape(stage.name), parts, share, f"{stage.num_steps:,}", epochs, stage.batch, memory)
        table.columns[1].no_wrap = True
        console.print(table)
        for stage in self.stages:
            for note in stage.notes:
                console.print(f"stage {stage.name}: {note}", markup=False)
        if self.example is not None:
            shown = self.example
            console.print(f"first example {shown.id}: {shown.prompt!r}", markup=False)
            supervised = " ".join(repr(token) for token in shown.supervised[:_NUM_SHOWN])
            supervised += " ..." if len(shown.supervised) > _NUM_SHOWN else ""
            console.print(f"supervised, {len(shown.supervised)} of {shown.num_tokens} tokens: {supervised}", markup=False)
        console.print(f"{self.lines()[-2]}; checkpoints take up to {size_text(self.disk_bytes)} of disk", markup=False)
        console.print(after, markup=False)
