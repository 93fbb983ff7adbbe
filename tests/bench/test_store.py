"""Rows, resuming and ratios, with a measurement that is only counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio.bench import run as running
from pal_audio.bench import store
from pal_audio.bench.case import Case, Setup, Sweep
from pal_audio.errors import PalError

SETUP = Setup(llm="tiny-llama", encoder="tiny-frames")
CPU = torch.device("cpu")
TIMES = {"text": 1.0, "plits": 8.0, "lal": 2.0, "pal": 3.0}


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is known without being measured."""
    machine = running.measure.hardware(CPU)
    monkeypatch.setattr(running.measure, "hardware", lambda device: machine)
    monkeypatch.setattr(running.measure, "matrix_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(running.measure, "bandwidth", lambda device: 1e9)
    monkeypatch.setattr(running.measure, "clean", lambda device: None)


class Fake:
    """Measures nothing and remembers what it was asked."""

    def __init__(self, failing: dict[str, Exception] | None = None) -> None:
        self.asked: list[str] = []
        self.failing = failing or {}

    def __call__(self, case: Case, device: torch.device, rates: dict[str, float]) -> store.Row:
        self.asked.append(case.title())
        if case.integration in self.failing:
            raise self.failing[case.integration]
        seconds = TIMES[case.integration] * max(1, case.audio_tokens)
        return {"compared": ["step_s", "rest_bytes"], "step_s": seconds, "rest_bytes": int(100 * seconds), "rates": rates}


def call(fake: Fake, out: Path | None, **lists: Any) -> list[list[store.Row]]:
    return running.run("train", Sweep(setup=SETUP, **lists).groups(), fake, CPU, out, "pal bench train")[1]


def test_groups_hold_their_trio_and_equal_work_is_one_row(tmp_path: Path) -> None:
    fake = Fake()
    groups = call(fake, tmp_path, integrations=["pal"], audio_tokens=[2, 4], projector=["per_layer", "shared"])
    assert [[row["case"]["integration"] for row in group] for group in groups] == [["text", "plits", "lal", "pal"]] * 4
    assert len(fake.asked) == len(set(fake.asked)) == 1 + 2 + 2 * 4, "text once, PLITS once a length"
    lal = groups[0][2]["ratios"]
    assert lal["step_plits"] == 4
    assert lal["rest_plits"] == 0.25
    assert lal["step_text"] == 0.25


def test_the_cheapest_are_measured_first(tmp_path: Path) -> None:
    fake = Fake()
    groups = call(fake, tmp_path, integrations=["pal"], audio_tokens=[4096], batch=[1])
    assert [title.split()[0] for title in fake.asked] == ["text", "lal", "pal", "plits"]
    assert [row["case"]["integration"] for row in groups[0]] == ["text", "plits", "lal", "pal"]


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    call(Fake(), tmp_path, audio_tokens=[2])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"key": "cut by a k')
    again = Fake()
    groups = call(again, tmp_path, audio_tokens=[2, 4])
    assert set(again.asked) == {"text 16x0+64", "plits 16x4+64", "lal per_layer 16x4+64", "pal per_layer k=16 16x4+64"}
    assert len(again.asked) == 4
    assert len({row["run"] for row in groups[0]}) == len({row["run"] for row in groups[1]}) == 1, "ratios are of one run"
    assert groups[0][0]["run"] != groups[1][0]["run"]
    last = Fake()
    call(last, tmp_path, audio_tokens=[4, 2])
    assert last.asked == []


def test_other_settings_and_other_machines_are_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(Fake(), tmp_path, audio_tokens=[2])
    other = Fake()
    running.run(
        "train", Sweep(setup=SETUP.model_copy(update={"packed": False}), audio_tokens=[2]).groups(), other, CPU, tmp_path, ""
    )
    assert len(other.asked) == 4
    machine = running.measure.hardware(CPU)
    monkeypatch.setattr(running.measure, "hardware", lambda device: machine | {"torch": "9.9"})
    elsewhere = Fake()
    call(elsewhere, tmp_path, audio_tokens=[2])
    assert len(elsewhere.asked) == 4


def test_what_does_not_fit_is_a_row(tmp_path: Path) -> None:
    groups = call(Fake({"plits": torch.OutOfMemoryError("CUDA out of memory")}), tmp_path, audio_tokens=[2])
    assert groups[0][1]["error"] == "out of memory"
    assert groups[0][2]["ratios"]["step_plits"] is None
    assert groups[0][2]["ratios"]["step_text"] == 0.25
    assert running.failures(groups) == []
    again = Fake()
    call(again, tmp_path, audio_tokens=[2])
    assert again.asked == []


def test_a_failure_is_seen_and_measured_again(tmp_path: Path) -> None:
    groups = call(Fake({"lal": RuntimeError("kernel\nlost")}), tmp_path, audio_tokens=[2])
    assert [row["error"] for row in running.failures(groups)] == ["RuntimeError: kernel lost"]
    again = Fake()
    assert running.failures(call(again, tmp_path, audio_tokens=[2])) == []
    assert len(again.asked) == 4


def test_files_hold_header_and_rows(tmp_path: Path) -> None:
    call(Fake(), tmp_path, audio_tokens=[2])
    content = json.loads((tmp_path / "results.json").read_text())
    assert {"device", "torch", "transformers", "commit"} <= set(content["header"]["hardware"])
    assert {"command", "date", "rates"} <= set(content["header"])
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 5
    assert "ratios.step_plits" in lines[0]
    assert {row["key"] for row in store.read_results(tmp_path / "results.json")} == {
        row["key"] for row in store.read_results(tmp_path / "rows.jsonl")
    }
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(PalError, match="no results"):
        store.read_results(tmp_path / "other.json")
