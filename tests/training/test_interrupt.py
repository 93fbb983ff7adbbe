"""SIGINT and SIGTERM: the step at hand is saved, the handlers come back, a second signal ends at once."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pal_audio import cli
from pal_audio.training import run as run_module
from pal_audio.training.checkpoint import newest_checkpoint
from pal_audio.training.interrupt import stop_request
from pal_audio.training.run import train

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def own_handlers() -> Any:
    """A shell may have started the tests with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signal_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, number: signal.Signals) -> None:
    """Send a signal to this process in the middle of a step."""
    report = run_module._report

    def reported(*arguments: Any) -> None:
        report(*arguments)
        if (arguments[-2], arguments[-1].step) == (stage, step):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(run_module, "_report", reported)


@pytest.mark.parametrize(
    ("number", "stage", "step"),
    [(signal.SIGINT, "first", 3), (signal.SIGTERM, "second", 2), (signal.SIGTERM, "first", 6), (signal.SIGINT, "second", 4)],
)
def test_the_step_at_hand_is_saved_and_the_printed_command_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: Path,
    tmp_path: Path,
    number: signal.Signals,
    stage: str,
    step: int,
) -> None:
    """Also at the last step of a stage and of the run."""
    folder = tmp_path / "a run"
    with monkeypatch.context() as patch:
        signal_at(patch, stage, step, number)
        assert cli.main(["train", str(recipe), "--set", "seed=5", "--out", str(folder)]) == 128 + number
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pal:")]
    assert f"stopped by {number.name} and saved at stage {stage!r}, step {step};" in line
    saved = newest_checkpoint(folder / ("checkpoints-0" if stage == "first" else "checkpoints-1"))
    assert saved is not None
    assert int(saved.name) == step
    assert not (folder / "final").exists()
    found = re.search(r"go on with: pal (.*)", line)
    assert found is not None
    assert cli.main(shlex.split(found[1])) == 0
    logged = [json.loads(row)["step"] for row in (folder / "log.jsonl").read_text().splitlines()]
    assert logged == [*range(1, 7), *range(1, 5)]
    whole = load_file(train(recipe, ["seed=5"], out=tmp_path / "whole") / "final" / "model.safetensors")
    resumed = load_file(folder / "final" / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_second_signal_ends_at_once(recipe: Path, tmp_path: Path) -> None:
    """Both come in the same step, before it is saved."""
    script = """
import os, signal, sys
from pal_audio import cli
from pal_audio.training import run
signal.signal(signal.SIGINT, signal.default_int_handler)
second = getattr(signal, sys.argv.pop())
def twice(*_):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), second)
run._report = twice
sys.exit(cli.main(sys.argv[1:]))
"""
    for name, status in (("SIGINT", 130), ("SIGTERM", -signal.SIGTERM)):
        run = tmp_path / name
        command = [sys.executable, "-c", script, "train", str(recipe), "--out", str(run), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "stopped by" not in done.stderr
        assert not (run / "checkpoints-0").exists()


def test_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_request() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] != before
        assert not stop.made()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(RuntimeError, match="planted"), stop_request():
        raise RuntimeError("planted")
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with stop_request() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_a_launcher_passes_on_is_no_second_one() -> None:
    def four_signals() -> None:
        with stop_request(patience_s=0.3) as stop:
            stop.signal = signal.SIGTERM  # another process has heard of it first
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
            seen.append(stop.signal)
            time.sleep(0.4)
            os.kill(os.getpid(), signal.SIGINT)

    seen: list[signal.Signals | None] = []
    with pytest.raises(KeyboardInterrupt):
        four_signals()
    assert seen == [signal.SIGINT]


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_request() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.made()


def test_nothing_is_installed_outside_the_main_thread() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def enter() -> None:
        with stop_request():
            seen.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
