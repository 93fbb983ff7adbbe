"""benchmarks/lab: sound under other conditions, and a machine without PyAV."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from benchmarks.lab import robustness

from pal_audio.audio import load_audio

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


def test_the_lab_and_what_it_runs_need_no_pyav() -> None:
    code = """
import importlib, pkgutil, sys
sys.modules["av"] = None
import benchmarks.lab
names = [f"benchmarks.lab.{item.name}" for item in pkgutil.iter_modules(benchmarks.lab.__path__)]
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
    assert int(done.stdout.split()[0]) > 20
    assert "again to go on" in done.stdout
