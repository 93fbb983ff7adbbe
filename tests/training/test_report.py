"""The report of a run, with and without matplotlib and TensorBoard."""

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from pal_audio.training import trackers
from pal_audio.training.report import write_report
from pal_audio.training.run import train


def test_a_run_ends_with_a_report_and_curves(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, ["data.num_test=13"], out=tmp_path / "run")
    text = (run / "report.md").read_text()
    assert text.startswith("# tiny\n")
    for line in (
        "- data: 24 examples to train on, 13 held out",
        "- stage second: 4 steps of 4; learning rates: encoder 0.001",
        "Of 13 held-out questions.",
        "| task | right | muted | best guess |",
        "![loss, learning rate and gradient norm](curves.png)",
        f"| torch | {version('torch')} |",
        trackers.plan_line(run, None),
    ):
        assert line in text
    scores = json.loads((run / "scores.json").read_text())
    assert f"| all | {scores['accuracy']['all']:.1%} | {scores['muted']['all']:.1%} | {scores['chance']:.1%} |" in text
    table = text.partition("## 10 answers")[2].partition("## Versions")[0]
    assert sum(line.startswith("| ") for line in table.splitlines()) == 2 + 10
    with Image.open(run / "curves.png") as picture:
        assert picture.size == (800, 700)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_the_log_holds_the_rate_of_every_part(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, ["stages.0.warmup_steps=4"], out=tmp_path / "run")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["learning_rates"]["projector"] for row in rows[:4]] == pytest.approx([0.00025, 0.0005, 0.00075, 0.001])
    assert list(rows[0]["learning_rates"]) == ["connector", "projector", "llm"]
    assert list(rows[-1]["learning_rates"]) == ["encoder"]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What the report reads, with text that would break a table."""
    answer = {"question": "a | b\nc", "truth": "x", "answer": "y", "right": False}
    scores = {"num": 2, "accuracy": {"all": 0.5}, "muted": {"all": 0.0}, "chance": 0.25, "chance_by_task": {}}
    row = {"index": 0, "stage": "$a_", "step": 1, "loss": 1.0, "gradient_norm": 1.0, "learning_rates": {"llm": 0.1}}
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": {"name": "mine"}, "versions": {"torch": "1"}}))
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "answers.jsonl").write_text(2 * (json.dumps(answer) + "\n"))
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_text_does_not_break_the_tables(finished: Path) -> None:
    assert "| a \\| b c | x | y | no |" in write_report(finished, ["a plan"]).read_text()


def test_without_matplotlib_the_report_says_so(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_report(finished, ["a plan"]).read_text()
    assert "not drawn" in text
    assert "pip install 'pal-audio[plot]'" in text
    assert "curves.png" not in text
    assert not (finished / "curves.png").exists()


def test_without_tensorboard_the_plan_says_so(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "installed", lambda name: False)
    run = train(recipe, ["stages.0.steps=1", "stages.1.steps=1"], out=tmp_path / "run")
    assert "pal-audio[train]" in capsys.readouterr().err
    assert trackers.plan_line(run, None) in (run / "report.md").read_text()
    assert not (run / "tensorboard").exists()


def test_with_tensorboard_every_step_is_written(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its writer, so that this holds wherever the tests run."""
    written: list[tuple[str, str, int]] = []
    closed = []

    class SummaryWriter:
        def __init__(self, log_dir: str, purge_step: int) -> None:
            self.stage = Path(log_dir).name
            assert purge_step == 1

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert isinstance(value, float)
            written.append((self.stage, name, step))

        def close(self) -> None:
            closed.append(self.stage)

    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(trackers, "installed", lambda name: True)
    run = train(recipe, out=tmp_path / "run")
    assert f"tensorboard: on, event files in {run / 'tensorboard'}" in (run / "report.md").read_text()
    assert [step for stage, name, step in written if (stage, name) == ("0", "loss")] == [1, 2, 3, 4, 5, 6]
    assert {name for stage, name, _ in written if stage == "1"} == {"loss", "gradient_norm", "seconds", "learning_rate/encoder"}
    assert closed == ["0", "1"]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard, of the extra [train], is not installed")
def test_tensorboard_reads_the_event_files(recipe: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(recipe, out=tmp_path / "run")
    events = EventAccumulator(str(run / "tensorboard" / "0"))
    events.Reload()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][:6]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
