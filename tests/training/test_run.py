"""A run from recipe to finished folder, by the real command: killed, resumed, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pal_audio.errors import PalError
from pal_audio.training import run as run_module
from pal_audio.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from pal_audio.training.run import train


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def steps(run: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def test_a_run_ends_with_a_model_scores_and_answers(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, out=tmp_path / "run")
    assert steps(run) == [("first", step) for step in range(1, 7)] + [("second", step) for step in range(1, 5)]
    scores = json.loads((run / "scores.json").read_text())
    assert scores["num"] == 6
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6
    assert scores["accuracy"]["all"] == sum(row["right"] for row in answers) / 6
    stored = json.loads((run / "recipe.json").read_text())
    assert stored["recipe"]["name"] == "tiny"
    assert stored["versions"]["torch"] == torch.__version__
    # The second stage trained the encoder alone.
    after_first = load_file(run / "checkpoints-0" / "00000006" / "model.safetensors")
    changed = {name for name, tensor in weights(run).items() if not torch.equal(tensor, after_first[name])}
    assert changed
    assert all(name.startswith("encoders.") for name in changed)


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_run_that_diverges_is_the_users_to_mend_and_its_weights_are_not_kept(
    what: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, step = ["stages.0.steps=2", "stages.0.train={llm: 1e30}"], 2
    if what == "gradient norm":  # in the only step: its loss is a number, and its weights are what would be saved
        settings, step = ["stages.0.steps=1"], 1
        monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(PalError, match=rf"stage 'first': the {what} is (nan|inf) at step {step}; lower the learning rate"):
        train(recipe, out=tmp_path / "run", overrides=settings)
    assert not (tmp_path / "run" / "final").exists()
    assert not list((tmp_path / "run").glob("checkpoints-0/*/model.safetensors"))


def test_a_killed_run_resumes_to_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the first stage and again in the second; the end is bit-equal."""
    whole = train(recipe, out=tmp_path / "whole")
    command = [sys.executable, "-m", "pal_audio", "train", str(recipe), "--out", str(tmp_path / "killed"), "--resume"]
    for stage, step in (("first", 3), ("second", 2)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not _reached(tmp_path / "killed" / "log.jsonl", stage, step):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resumed = weights(tmp_path / "killed")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights(whole).items())


def _reached(log: Path, stage: str, step: int) -> bool:
    return log.is_file() and any(
        json.loads(line)["stage"] == stage and json.loads(line)["step"] >= step
        for line in log.read_text().splitlines()
        if line.endswith("}")
    )


def test_folders_are_not_overwritten(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    for options, words in (
        ({}, "--resume goes on"),
        ({"resume": True}, "no run that can be resumed"),
        ({"overwrite": True}, "no run"),
    ):
        with pytest.raises(PalError, match=words):
            train(recipe, out=folder, **options)  # type: ignore[arg-type]
    assert (folder / "mine.txt").read_text() == "keep"
    run = train(recipe, ["stages.0.steps=1", "stages.1.steps=1"], out=tmp_path / "other")
    with pytest.raises(PalError, match="another recipe"):
        train(recipe, out=run, resume=True)
    with pytest.raises(PalError, match="not empty"):
        train(recipe, out=run)
    before = (run / "final" / "model.safetensors").stat().st_mtime_ns
    assert train(recipe, ["stages.0.steps=1", "stages.1.steps=1"], out=run, resume=True) == run
    assert (run / "final" / "model.safetensors").stat().st_mtime_ns == before
    train(recipe, ["stages.0.steps=2", "stages.1.steps=1"], out=run, overwrite=True)
    assert ("first", 2) in steps(run)


def _trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    model, optimizer = _trained()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, model, optimizer, {"step": step})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000002", "00000003"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "00000003"
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    older = newest_checkpoint(tmp_path)
    assert older is not None
    assert older.name == "00000002"
    (older / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path) is None


def test_a_loaded_checkpoint_continues_as_the_original(tmp_path: Path) -> None:
    model, optimizer = _trained()
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 1, "identity": "x"})
    other: Any = torch.nn.Linear(3, 2)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    assert load_checkpoint(path, other, other_optimizer) == {"step": 1, "identity": "x"}
    for one, its in ((model, optimizer), (other, other_optimizer)):
        one.zero_grad()
        one(torch.full((1, 3), 2.0)).pow(2).sum().backward()
        its.step()
    assert torch.equal(model.weight, other.weight)


def test_overwrite_leaves_a_live_run_alone(recipe: Path, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text("{}")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PalError, match="being written by another process"):
            train(recipe, out=folder, overwrite=True)
    assert (folder / "recipe.json").is_file()


def test_the_log_is_on_disk_after_every_step_and_never_counts_one_twice(recipe: Path, tmp_path: Path) -> None:
    """What a killed run did after its last checkpoint is done again, and logged once."""
    run = train(recipe, out=tmp_path / "run")
    (run / "finished.json").unlink()
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    for folder in ("checkpoints-1", "final"):
        shutil.rmtree(run / folder)
    (run / "log.jsonl").write_text("".join(lines[:-1]) + lines[-1][:10])  # cut in the middle of a line
    train(recipe, out=run, resume=True)
    assert steps(run) == [("first", step) for step in range(1, 7)] + [("second", step) for step in range(1, 5)]


def test_a_run_that_began_before_there_was_a_key_of_recipes_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(run_module, "identity_of", lambda _: "of an older version")
        run = train(recipe, out=tmp_path / "run")
    file = run / "recipe.json"
    told = json.loads(file.read_text())
    for stage in told["recipe"]["stages"]:
        del stage["audio_kernel"]
    file.write_text(json.dumps(told))
    whole = weights(run)
    (run / "finished.json").unlink()
    for folder in ("checkpoints-1", "final"):
        shutil.rmtree(run / folder)
    train(recipe, out=run, resume=True)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(run).items())
    assert json.loads(file.read_text())["identity"] == "of an older version", "which its checkpoints carry"
    with pytest.raises(PalError, match="another recipe"):
        train(recipe, ["stages.0.steps=7"], out=run, resume=True)


def test_a_model_that_cannot_be_built_is_refused_before_data_is_made(recipe: Path, tmp_path: Path) -> None:
    for override, words in (("model.llm.hidden_sise=32", "hidden_size"), ("model.llm.num_attention_heads=5", "model.llm")):
        with pytest.raises(PalError, match=words):
            train(recipe, [override], out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
