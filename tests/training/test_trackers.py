"""Trackers, by stand-ins that record their calls; no network, and nothing of theirs need be installed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.training import trackers
from pal_audio.training.preflight import plan_run
from pal_audio.training.run import train

STAND_IN = """
import json
from pathlib import Path
CALLS = Path(__file__).with_suffix(".calls")
def _note(*call):
    with CALLS.open("a") as file:
        file.write(json.dumps(call) + "\\n")
def init(**options): _note("init", options)
def log(values, step): _note("log", values, step)
def finish(): _note("finish")
"""
SHORT = ["stages.0.steps=2", "stages.1.steps=1", "stages.1.eval_every=1", "stages.0.save_every=1"]


@pytest.fixture(params=["wandb", "trackio"])
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tracker that is stood in for on the path."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{request.param}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    yield request.param
    sys.modules.pop(request.param, None)


def calls(tmp_path: Path, name: str) -> list[list[Any]]:
    return [json.loads(line) for line in (tmp_path / "path" / f"{name}.calls").read_text().splitlines()]


def test_every_step_is_sent_once_under_its_stage(recipe: Path, tmp_path: Path, name: str) -> None:
    run = train(recipe, [*SHORT, f"trackers=[{name}]"], out=tmp_path / "run")
    first, *logged, last = calls(tmp_path, name)
    assert first[0] == "init"
    options = first[1]
    assert options["project"] == "pal-audio"
    assert options["config"]["stages"][0]["steps"] == 2
    assert options["resume"] == "allow"
    assert options["name"].startswith("tiny-")
    if name == "wandb":
        assert (options["id"], options["dir"]) == (options["name"], str(run))
    assert last == ["finish"]
    assert [call[2] for call in logged] == [1, 2, 3], "steps count on over stages"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [call[1]["first/loss"] for call in logged[:2]] == [row["loss"] for row in rows[:2]]
    assert logged[0][1]["first/learning_rate/llm"] == rows[0]["learning_rates"]["llm"]
    assert logged[2][1]["second/held_out_loss"] == rows[2]["held_out_loss"]
    assert not (run / "tensorboard").exists()
    assert f"{name}: on, project pal-audio" in (run / "report.md").read_text()


def test_a_run_that_goes_on_keeps_its_name_there(
    recipe: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SHORT, f"trackers=[{name}]"]
    write = trackers.Trackers.write

    def stop(self: trackers.Trackers, record: Any) -> None:
        write(self, record)
        if record.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trackers.Trackers, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, settings, out=tmp_path / "run")
    assert calls(tmp_path, name)[-1] == ["finish"], "it is ended whatever happens"
    train(recipe, settings, out=tmp_path / "run", resume=True)
    seen = calls(tmp_path, name)
    assert len({call[1]["name"] for call in seen if call[0] == "init"}) == 1
    assert [call[2] for call in seen if call[0] == "log"] == [1, 2, 2, 3]
    train(recipe, settings, out=tmp_path / "other")
    assert len({call[1]["name"] for call in calls(tmp_path, name) if call[0] == "init"}) == 2


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed_is_an_error_that_says_what_to_do(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(trackers, "installed", lambda name: False)
    command = ["train", str(recipe), "--set", f"trackers=[{name}]", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 2
    line = capsys.readouterr().err
    assert f"{name} is not installed: {trackers.INSTALL[name]}" in line  # type: ignore[index]
    assert not (tmp_path / "run").exists()


def test_none_and_unknown_ones(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, [*SHORT, "trackers=[]"], out=tmp_path / "run")
    assert not (run / "tensorboard").exists()
    assert "trackers: none" in (run / "report.md").read_text()
    with pytest.raises(PalError, match="trackers"):
        plan_run(recipe, ["trackers=[mlflow]"])


def test_trackers_are_no_part_of_what_a_run_is(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, SHORT, out=tmp_path / "run")
    (run / "finished.json").unlink()
    train(recipe, [*SHORT, "trackers=[]"], out=run, resume=True)
