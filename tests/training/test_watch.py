"""Evaluation during training: it changes no number, resumes exactly, and the best checkpoint is kept and may be taken."""

import gc
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.training import run as run_module
from pal_audio.training import watch
from pal_audio.training.checkpoint import newest_checkpoint, save_checkpoint
from pal_audio.training.preflight import plan_run
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from pal_audio.training.watch import Pace, Watch, duration_text, undisturbed

EVERY_2 = ["stages.0.eval_every=2", "stages.0.eval_samples=2", "stages.0.eval_examples=5"]
FORGETS = ["stages.0.train={connector: 0.5, projector: 0.5, llm: 0.5}", "stages.0.schedule=constant", "stages.0.steps=8"]
"""Rates at which the loss grows, so that the best evaluation is not the last."""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def equal(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_training_is_the_same_with_and_without(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = train(recipe, out=tmp_path / "without")
    watched = train(recipe, [*EVERY_2, "stages.1.eval_every=3"], out=tmp_path / "watched")
    assert equal(without / "final" / "model.safetensors", watched / "final" / "model.safetensors")
    plain, seen = rows(without / "log.jsonl"), rows(watched / "log.jsonl")
    assert [(row["loss"], row["gradient_norm"]) for row in plain] == [(row["loss"], row["gradient_norm"]) for row in seen]
    assert not (without / "samples.jsonl").exists()
    samples = rows(watched / "samples.jsonl")
    assert [(row["stage"], row["step"]) for row in samples] == [
        ("first", 2),
        ("first", 4),
        ("first", 6),
        ("second", 3),
        ("second", 4),
    ]
    assert [row["held_out_loss"] for row in samples] == [row["held_out_loss"] for row in seen if "held_out_loss" in row]
    assert [len(row["answers"]) for row in samples] == [2, 2, 2, 4, 4]
    shown = capsys.readouterr().err
    assert f"step 6: held-out loss {samples[2]['held_out_loss']:.4f} over 5 examples" in shown
    assert f"truth {samples[0]['answers'][0]['truth']!r}" in shown
    from PIL import Image

    assert Image.open(watched / "curves.png").size == (800, 700)


def test_answers_are_asked_in_batches_of_the_stages_size_while_the_data_is_left_alone(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    real = watch.answer_all

    def answer_all(model: Any, collator: Any, examples: Any, num_rows: int, *more: Any) -> Any:
        asked.append((len(examples), num_rows))
        assert gc.get_freeze_count() > 0
        return real(model, collator, examples, num_rows, *more)

    monkeypatch.setattr(watch, "answer_all", answer_all)
    sizes = ["stages.0.batch_size=6", "stages.1.batch_size=4", "stages.1.accumulate=2"]
    train(recipe, ["stages.0.eval_every=3", "stages.1.eval_every=4", *sizes], out=tmp_path / "run")
    assert [rows for _, rows in asked] == [6, 6, 2]
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_the_held_out_loss_is_that_of_the_models_answers(recipe: Path, tmp_path: Path) -> None:
    """Recomputed from the finished model, example by example, over the whole held-out set."""
    run = train(recipe, ["stages.1.eval_every=4", "stages.1.eval_examples=100"], out=tmp_path / "run")
    from pal_audio.data.collation import Collator
    from pal_audio.data.manifest import read_manifest

    model, processor = load(run / "final")
    total, num = 0.0, 0
    for example in read_manifest(run / "data" / "test.jsonl"):
        inputs = Collator(processor).training_batch([example])
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[:, :-1]
        total += float(torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum"))
        num += int((labels >= 0).sum())
    assert rows(run / "samples.jsonl")[-1]["held_out_loss"] == pytest.approx(total / num, rel=1e-5)


BEST = [*EVERY_2, *FORGETS, "stages.0.keep=best", "stages.0.save_every=3", "stages.1.steps=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe_text: str) -> Path:
    """A run that nobody broke."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(recipe_text)
    return train(folder / "tiny.yaml", BEST, out=folder / "run")


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_broken_run_goes_on_to_the_same_end(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, whole: Path
) -> None:
    """Broken before a step is saved, at the step of an evaluation too: weights, evaluations and the best are the same."""
    settings = BEST
    report = run_module._report

    def stop(*arguments: Any) -> None:
        report(*arguments)
        if (arguments[-2], arguments[-1].step) == ("first", at):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_report", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, settings, out=tmp_path / "broken")
    broken = train(recipe, settings, out=tmp_path / "broken", resume=True)
    assert equal(whole / "final" / "model.safetensors", broken / "final" / "model.safetensors")
    assert rows(whole / "samples.jsonl") == rows(broken / "samples.jsonl")
    for place in ("best.json", "00000008/manifest.json"):
        assert (whole / "checkpoints-0" / place).read_text() == (broken / "checkpoints-0" / place).read_text()


def test_the_best_checkpoint_is_kept_marked_and_taken(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, [*EVERY_2, *FORGETS, "stages.0.keep=best", "stages.0.save_every=1"], out=tmp_path / "best")
    losses = {row["step"]: row["held_out_loss"] for row in rows(run / "samples.jsonl") if row["stage"] == "first"}
    best = min(losses, key=losses.__getitem__)
    assert best < 7, "the recipe is to forget, or this test shows nothing"
    assert json.loads((run / "checkpoints-0" / "best.json").read_text()) == {"step": best, "held_out_loss": losses[best]}
    folders = sorted(path.name for path in (run / "checkpoints-0").iterdir() if path.is_dir())
    assert folders == sorted({f"{best:08d}", "00000007", "00000008"})
    taken = load_file(run / "checkpoints-0" / f"{best:08d}" / "model.safetensors")
    final = load_file(run / "final" / "model.safetensors")
    names = [name for name in taken if not name.startswith("encoders.")]  # the second stage trains the encoder alone
    assert names
    assert all(torch.equal(taken[name], final[name]) for name in names)
    last = train(recipe, [*EVERY_2, *FORGETS], out=tmp_path / "last")
    assert not torch.equal(load_file(last / "final" / "model.safetensors")["marker"], final["marker"])


def test_rotation_keeps_the_best_and_the_last_verified(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(1, 7):
        best = {"step": min(step, 2), "held_out_loss": 0.5}
        save_checkpoint(tmp_path, model, optimizer, {"step": step, "best": best})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000005", "00000006", "best.json"]
    for step in (5, 6):
        (tmp_path / f"{step:08d}" / "model.safetensors").write_bytes(b"damaged")
    assert newest_checkpoint(tmp_path) == tmp_path / "00000002"
    save_checkpoint(tmp_path, model, optimizer, {"step": 7, "best": {"step": 7, "held_out_loss": 0.4}})
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["00000006", "00000007"]


def test_a_damaged_best_checkpoint_is_said(recipe: Path, tmp_path: Path) -> None:
    settings = [*EVERY_2, *FORGETS, "stages.0.keep=best", "stages.1.steps=1"]
    run = train(recipe, settings, out=tmp_path / "run")
    (run / "finished.json").unlink()
    best = json.loads((run / "checkpoints-0" / "best.json").read_text())["step"]
    (run / "checkpoints-0" / f"{best:08d}" / "state.json").write_text("{}")
    with pytest.raises(PalError, match="the best checkpoint is damaged; begin again with --overwrite"):
        train(recipe, settings, out=run, resume=True)


def test_the_best_needs_evaluations(recipe: Path) -> None:
    with pytest.raises(PalError, match="`keep: best` needs `eval_every`"):
        load_recipe(recipe, ["stages.0.keep=best"])


def test_evaluations_take_disk_for_the_best(recipe: Path) -> None:
    assert plan_run(recipe, EVERY_2).disk_bytes > plan_run(recipe).disk_bytes


def test_modes_and_random_states_come_back() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2)).train()
    module[1].eval()

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seeds = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(seeds[0])
    np.random.set_state(seeds[1])
    torch.set_rng_state(seeds[2])
    with undisturbed(module, torch.device("cpu")):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        draw()
    assert draw() == expected
    assert [part.training for part in module.modules()] == [True, True, False]


def test_the_subset_is_fixed_and_spread(recipe: Path) -> None:
    stage = load_recipe(recipe, EVERY_2).stages[0]
    numbers: Any = list(range(100))
    one, again, other = (Watch(stage, 0, None, numbers, seed, None, Console()).examples for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert one == again == sorted(one)
    assert len(set(one)) == 5
    assert one != other


def test_the_time_is_said_once_and_by_the_clock() -> None:
    said: list[str] = []
    times = iter([100.0, 115.0, 117.0, 119.0, 121.0])  # the first steps are slow
    pace = Pace(365, said.append, lambda: next(times))
    for _ in range(4):
        pace.step()
    assert said == []
    for _ in range(5):
        pace.step()
    assert said == ["about 12 min to go in this stage"]
    slow = iter([0.0, 30.0, 60.0])
    short = Pace(3, said.append, lambda: next(slow))
    for _ in range(3):
        short.step()
    assert len(said) == 1, "nothing is left to wait for"
    assert [duration_text(seconds) for seconds in (0.2, 40, 300, 6000)] == ["1 s", "40 s", "5 min", "1.7 h"]


def test_a_run_says_its_time(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pal_audio.training.watch._SECONDS_TO_JUDGE", 0.0)
    train(recipe, out=tmp_path / "run")
    assert capsys.readouterr().err.count("to go in this stage") == 2
