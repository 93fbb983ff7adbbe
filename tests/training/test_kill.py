"""A run killed by -9 at chosen moments, two of them inside a save, resumes to the same bits and leaves no litter."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pal_audio.training.run import train

KILL = "import os, signal, sys\nfrom pathlib import Path\nkill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
HALF_A_FILE = """
import pal_audio.training.checkpoint as checkpoint
whole = checkpoint.save_file
def half(tensors, path):
    whole(tensors, path)
    if "00000004" in str(path) and Path(path).name == "optimizer.safetensors":
        with open(path, "r+b") as file:
            file.truncate(Path(path).stat().st_size // 2)
        kill()
checkpoint.save_file = half
"""
BEFORE_THE_RENAME = """
replace = os.replace
def killed(source, target):
    kill() if Path(target).name == "00000004" else replace(source, target)
os.replace = killed
"""
IN_A_STEP = """
from accelerate import Accelerator
clip, left = Accelerator.clip_grad_norm_, {moment}
def killed(self, *arguments):
    global left
    left -= 1
    return clip(self, *arguments) if left else kill()
Accelerator.clip_grad_norm_ = killed
"""
RUN = "\nfrom pal_audio.training.run import train\ntrain(sys.argv[1], out=Path(sys.argv[2]), resume=True)\n"
NUM_STEPS = 10
MOMENTS = sorted(int(moment) for moment in np.random.default_rng(3).choice(np.arange(1, NUM_STEPS + 1), 3, replace=False))
PLACES = {"half a file": HALF_A_FILE, "before the rename": BEFORE_THE_RENAME} | {
    f"step {moment}": IN_A_STEP.format(moment=moment) for moment in MOMENTS
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe_text: str) -> dict[str, torch.Tensor]:
    """Weights of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(recipe_text)
    train(folder / "tiny.yaml", out=folder / "run")
    return load_file(folder / "run" / "final" / "model.safetensors")


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_resumes_to_the_same_bits(place: str, whole: dict[str, torch.Tensor], recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILL + PLACES[place] + RUN, recipe, run], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (run / "final").exists()
    if not place.startswith("step"):
        assert [path.name for path in run.rglob(".0*.tmp")] == [".00000004.tmp"]
    train(recipe, out=run, resume=True)
    resumed = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert [path.name for path in run.rglob(".0*.tmp")] == []
    logged = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert logged == [*range(1, 7), *range(1, 5)]
