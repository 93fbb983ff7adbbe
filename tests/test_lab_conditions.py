"""benchmarks/lab: sound under other conditions, and a machine without PyAV."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from benchmarks.lab import robustness
from benchmarks.lab.questions import write_tests

from pal_audio.audio import load_audio
from pal_audio.data import build, read_manifest
from pal_audio.training.recipe import load_data
from tests.data.mixing.sets import make_all
from tests.lab_recipes import make_recipes

ROOT = Path(__file__).parents[1]
MPEG_2_KBIT_S = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def test_degraded_sound_is_what_its_name_says(tmp_path: Path) -> None:
    time_s = np.arange(32_000) / 16_000
    wave = (0.3 * np.sin(2 * np.pi * 440 * time_s) + 0.3 * np.sin(2 * np.pi * 6000 * time_s)).astype(np.float32)
    heard = {}
    for name, (ending, write) in robustness.CONDITIONS.items():
        write(tmp_path / f"{name}.{ending}", wave)
        heard[name] = load_audio(tmp_path / f"{name}.{ending}", 16_000)[8_000:24_000]
    level = {name: float(np.sqrt(np.mean(part**2))) for name, part in heard.items()}
    assert level["44.1 kHz stereo"] == pytest.approx(0.3, abs=0.01)
    assert level["-20 dB"] == pytest.approx(0.03, abs=0.001)
    assert level["8 kHz"] == pytest.approx(0.3 / 2**0.5, abs=0.01), "6 kHz is gone"
    assert level["mp3 64k"] == pytest.approx(0.3, abs=0.02)
    assert (tmp_path / "mp3 64k.mp3").stat().st_size == pytest.approx(2 * 8000, rel=0.15)


def test_mp3_is_of_64_kbit_a_second_in_every_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    robustness.CONDITIONS["mp3 64k"][1](tmp_path / "a.mp3", rng.uniform(-0.5, 0.5, 16_000).astype(np.float32))
    content, at, rates = (tmp_path / "a.mp3").read_bytes(), 0, set()
    while at + 4 <= len(content):
        assert content[at : at + 2] == b"\xff\xf3", f"a frame of MPEG-2 layer III at byte {at}"
        rates.add(MPEG_2_KBIT_S[content[at + 2] >> 4])
        assert content[at + 2] >> 2 & 3 == 2, "16 kHz"
        at += 72 * 1000 * MPEG_2_KBIT_S[content[at + 2] >> 4] // 16_000 + (content[at + 2] >> 1 & 1)
    assert rates == {64}


def test_a_libsndfile_without_mp3_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert robustness.unavailable("mp3 64k") is None
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"FLAC": "FLAC"})
    assert robustness.unavailable("mp3 64k") == f"libsndfile {soundfile.__libsndfile_version__} has no MP3 encoder"
    assert robustness.unavailable("8 kHz") is None


def test_conditions_are_the_same_from_however_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_data(make_recipes(tmp_path / "recipes") / "world.yaml", [f"data.root={make_all(tmp_path / 'data')}"])
    build(recipe, tmp_path / "world", workers=1)
    index = write_tests(tmp_path / "world", tmp_path / "tests", [tmp_path], 12)
    monkeypatch.setattr(robustness, "_CHUNK", 5)
    for workers, name in ((1, "one"), (2, "two")):
        assert robustness.write_conditions(tmp_path / "tests", tmp_path / name, [tmp_path], workers) == {}
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    num = sum(min(robustness.MOST, len(task["ids"])) for task in index["tasks"].values())
    assert len(names) == 4 * num + 3
    for path in names:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    tasks = json.loads((tmp_path / "two" / "index.json").read_text())["tasks"]
    told_in_order = [id for task in tasks.values() for id in task["ids"]]
    files = [read_manifest(tmp_path / "two" / f"{name}.jsonl") for name in ("exact", "words")]
    assert sorted(told_in_order) == sorted(example.id for examples in files for example in examples)
    for examples in files:
        places = [told_in_order.index(example.id) for example in examples]
        assert places == sorted(places)
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"FLAC": "FLAC"})
    assert list(robustness.write_conditions(tmp_path / "tests", tmp_path / "less", [tmp_path])) == ["mp3 64k"]
    told = json.loads((tmp_path / "less" / "index.json").read_text())["tasks"]
    assert {name.partition(":")[0] for name in told} == {"44.1 kHz stereo", "-20 dB", "8 kHz"}


def test_the_lab_and_what_it_runs_need_no_pyav() -> None:
    code = """
import importlib, pkgutil, sys
sys.modules["av"] = None
import benchmarks.lab
names = [item.name for item in pkgutil.walk_packages(benchmarks.lab.__path__, "benchmarks.lab.")]
names += [f"pal_audio.{name}" for name in ("training.run", "data.mix", "data.encode", "data.workers", "evaluation.run",
          "evaluation.model_answerer", "evaluation.scoring", "model", "commands.train", "commands.encode", "commands.evaluate")]
for name in names:
    importlib.import_module(name)
print(len(names))
from benchmarks.lab.__main__ import main
main(["--help"])
"""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 30
    assert "again to go on" in done.stdout
