"""benchmarks/lab: steps spread over GPUs."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.lab.__main__ import main
from benchmarks.lab.gpus import Places, visible_gpus
from benchmarks.lab.steps import Runner, Step

from pal_audio.errors import PalError
from tests.lab_recipes import make_recipes

TELLS = """
import os, pathlib, sys, time
print("sees", os.environ.get("CUDA_VISIBLE_DEVICES", "all"), "threads", os.environ["OMP_NUM_THREADS"], flush=True)
begun, num = pathlib.Path(sys.argv[1]), int(sys.argv[2])
pathlib.Path(begun, sys.argv[3]).touch()
while len(list(begun.iterdir())) < num:  # all stand beside each other before the first ends
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def test_gpus_have_numbers_or_the_names_that_the_environment_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == ["0", "1", "2"]
    assert visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-b1,7")
    assert visible_gpus() == ["4", "GPU-b1", "7"]
    assert visible_gpus(1) == ["4"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["4", "GPU-b1"], "what torch counts as usable is the first of them"
    for most in (0, 3):
        with pytest.raises(PalError, match=f"--gpus {most}: 2 can be seen here"):
            visible_gpus(most)


def test_the_real_count_heeds_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_a_step_takes_the_gpu_on_which_fewest_run() -> None:
    places = Places(["a", "b"])
    assert [places.take(name) for name in "12345"] == ["a", "b", "a", "b", "a"]
    assert places.give_back("2") == places.give_back("4") == "b"
    assert [places.take(name) for name in "678"] == ["b", "b", "b"]
    assert places.give_back("9") is None
    assert Places().take("1") is None


def spread(tmp_path: Path, num: int, gpus: list[str], **options: Any) -> tuple[list[str], list[str], list[Step]]:
    """Run steps that wait for each other; gives what was said, and what the commands saw."""
    (tmp_path / "begun").mkdir()

    def step(name: str, **more: Any) -> Step:
        command = [str(tmp_path / "begun"), str(num), name]
        return Step(name, "kind", tmp_path / f"{name}.json", commands=lambda: [command], **more)

    said: list[str] = []
    steps = [step("first", on_gpu=False), *(step(f"s{number}") for number in range(num - 1))]
    runner = Runner(steps, tmp_path, num, say=said.append, gpus=gpus, program=(sys.executable, "-c", TELLS), **options)
    assert runner.run(), said
    return said, [(tmp_path / "logs" / f"{step.name}.log").read_text().strip() for step in steps], steps


def test_each_process_sees_one_gpu_and_they_are_evenly_spread(tmp_path: Path) -> None:
    said, seen, steps = spread(tmp_path, 5, ["3", "GPU-x"])
    names = [re.match(r"sees ?(\S*) threads", line)[1] for line in seen]  # type: ignore[index]
    assert names == ["", "3", "GPU-x", "3", "GPU-x"], "and a step that needs none sees none"
    assert [json.loads(step.mark.read_text())["gpu"] for step in steps] == [None, *names[1:]]
    lines = {line.split()[1].rstrip(":"): line for line in said}
    assert " on GPU " not in lines["first"]
    assert all(f" s on GPU {name}; " in lines[f"s{number}"] for number, name in enumerate(names[1:]))


def test_one_gpu_is_given_and_not_talked_of(tmp_path: Path) -> None:
    said, seen, _ = spread(tmp_path, 2, ["0"])
    assert seen[1].startswith("sees 0 ")
    assert not [line for line in said if "GPU" in line]


def test_without_gpus_the_environment_is_left_alone_or_hides_them(tmp_path: Path) -> None:
    for name, cpu_alone, start in (("a", False, "sees all "), ("b", True, "sees  threads")):
        (tmp_path / name).mkdir()
        _, seen, _ = spread(tmp_path / name, 2, [], cpu_alone=cpu_alone)
        assert all(line.startswith(start) for line in seen)


def test_a_device_or_number_of_gpus_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, out = make_recipes(tmp_path / "recipes"), tmp_path / "out"
    words = ["--root", str(tmp_path), "--out", str(out), "--recipes", str(recipes), "--tiny", "--minutes", "0"]
    assert main([*words, "--device", "cuda", "--gpus", "4"]) == 2
    assert "--gpus 4: 3 can be seen here" in capsys.readouterr().err
    assert main([*words, "--device", "cuda:1"]) == 2
    assert "CUDA_VISIBLE_DEVICES says which GPUs may be used" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--device", "cuda", "--gpus", "2"]) == 3
    assert "GPUs: 0, 1; each process sees one of them" in capsys.readouterr().out
    assert json.loads((out / "lab.json").read_text())["last"]["most_gpus"] == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main([*words, "--device", "cuda"]) == 2
    assert "no GPU can be seen here" in capsys.readouterr().err
