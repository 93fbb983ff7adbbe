"""The plan, and evaluation while training, of objectives that are not `answer`, and of parts of a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio.data.collation import Collator
from pal_audio.data.prepare import prepare
from pal_audio.errors import PalError
from pal_audio.training.memory import Device
from pal_audio.training.outcome import build, texts_of
from pal_audio.training.preflight import plan_run
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.training.objectives.made import ENCODER, LLM, example, manifest, recipe, spelt, texts

CTC: dict[str, Any] = {"objective": "ctc", "train": {"encoder": 3e-3}, "steps": 4, "eval_every": 2, "eval_examples": 5}
TEXT: dict[str, Any] = {"objective": "text", "train": {"llm": 3e-3}, "steps": 4, "eval_every": 2, "eval_examples": 5}
TAGS: dict[str, Any] = {"objective": "tags", "task": "name", "train": {"encoder": 3e-3}, "steps": 2, "eval_every": 1}


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == "ctc":
        return recipe(tmp_path, {"encoder": ENCODER}, [spelt(tmp_path, "train", 12, 0)], [spelt(tmp_path, "test", 6, 1)], CTC)
    if request.param == "text":
        return recipe(
            tmp_path,
            {"llm": LLM},
            [{"text": texts(tmp_path / "a.txt", 24, 0)}],
            [{"text": texts(tmp_path / "b.txt", 6, 1)}],
            TEXT,
        )
    sources = [{"path": spelt(tmp_path, "train", 12, 0), "name": "heard"}, {"text": texts(tmp_path / "a.txt", 24, 0)}]
    whole = {"preset": "pal", "encoder": ENCODER, "llm": LLM}
    answer = {"train": {"connector": 1e-3}, "steps": 2, "sources": ["heard"]}
    held_out = [spelt(tmp_path, "test", 6, 1), {"text": texts(tmp_path / "b.txt", 6, 1)}]
    return recipe(tmp_path, whole, sources, held_out, CTC | {"sources": ["heard"]}, TEXT, answer)


@pytest.mark.parametrize("made", ["ctc", "text", "all"], indirect=True)
def test_the_plan_is_that_of_the_run_and_evaluations_are_seen(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters, parts and notes; a stage of an encoder trains a head, and no example of it supervises tokens."""
    planned = plan_run(made, out=tmp_path / "run")
    run = train(made, out=tmp_path / "run")
    loaded = load_recipe(made)
    data = prepare(loaded.data, tmp_path / "data", answered=False)
    model, _ = build(loaded, texts_of(data.sample()))
    assert sum(planned.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())
    for stage in planned.stages:
        assert stage.num_trained == sum(stage.trained.values())
        assert stage.memory.optimizer == 2 * stage.memory.gradients == 8 * stage.num_trained
        assert stage.memory.activations > 0
        assert list(stage.trained) == (["encoder", "head"] if stage.objective == "ctc" else list(stage.learning_rates))
        assert all(f"- stage {stage.name}: {note}" in (run / "report.md").read_text() for note in stage.notes)
    assert (planned.example is None) == all(stage.objective == "ctc" for stage in planned.stages)
    used = sum(file.stat().st_size for file in run.glob("checkpoints-*/*/*.safetensors"))
    assert planned.disk_bytes > 0.9 * used
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    watched = [index for index, stage in enumerate(loaded.stages) if stage.eval_every]
    assert [(row["index"], row["step"]) for row in samples] == [(index, step) for index in watched for step in (2, 4)]
    assert all(row["answers"] == [] for row in samples)
    for index in watched:
        first, second = (row["held_out_loss"] for row in samples if row["index"] == index)
        assert second < first
    assert "held-out loss" in capsys.readouterr().err


def test_what_training_does_not_know_is_left_out_of_evaluations(tmp_path: Path) -> None:
    def clips(name: str, letters: str) -> str:
        return manifest(tmp_path, name, [example(tmp_path, f"{name}-{i}", s, s, i, "name") for i, s in enumerate(letters)])

    for stage in (TAGS, {**CTC, "steps": 2, "eval_every": 1}):
        made = recipe(tmp_path, {"encoder": ENCODER}, [clips("train", "abab")], [clips("test", "abca")], stage)
        run = train(made, out=tmp_path / f"run-{stage['objective']}")
        assert len((run / "samples.jsonl").read_text().splitlines()) == 2
    made = recipe(tmp_path, {"encoder": ENCODER}, [clips("train", "abab")], [clips("test", "ccc")], CTC)
    with pytest.raises(PalError, match=r"stage 'stage0': eval_every needs held-out examples, but none of data.test") as error:
        plan_run(made)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("made", ["ctc", "text"], indirect=True)
def test_parts_beyond_the_devices_memory_are_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the encoder alone where a head is still to come."""
    monkeypatch.setattr(Device, "here", classmethod(lambda cls: Device("cuda", "tiny card", 9_000)))
    for call in (train, plan_run):
        with pytest.raises(PalError, match=r"stage 'stage0' needs .* tiny card has"):
            call(made, out=tmp_path / "run")  # type: ignore[operator]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("made", ["ctc"], indirect=True)
def test_parts_have_no_trained_parts_alone(made: Path) -> None:
    with pytest.raises(PalError, match="save: trained is of a whole model"):
        plan_run(made, ["save=trained"])


def test_texts_are_checked_on_resume(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    made = recipe(tmp_path, {"llm": LLM}, [{"text": texts(a, 24, 0)}], [{"text": texts(b, 6, 1)}], {**TEXT, "steps": 2})
    run = train(made, out=tmp_path / "run")
    assert json.loads((run / "recipe.json").read_text())["data"].keys() == {str(a), str(b)}
    (run / "finished.json").unlink()
    b.write_text(b.read_text() + "one more\n")
    with pytest.raises(PalError, match=r"b.txt is not what"):
        train(made, out=run, resume=True)


def test_the_held_out_loss_of_an_encoder_is_that_of_its_examples(tmp_path: Path) -> None:
    """In batches of two with padding, against one clip at a time."""
    from pal_audio.training.plan import plan_stages
    from pal_audio.training.watch import Watch

    stage = {**CTC, "batch_size": 2}
    made = recipe(tmp_path, {"encoder": ENCODER}, [spelt(tmp_path, "train", 12, 0)], [spelt(tmp_path, "test", 6, 1)], stage)
    loaded = load_recipe(made)
    data = prepare(loaded.data, tmp_path / "data", answered=False)
    torch.manual_seed(0)
    model, processor = build(loaded, [])
    (planned,) = plan_stages(loaded, model, Collator(processor), data)  # type: ignore[arg-type]
    objective = planned.objective
    objective.module.eval()
    watch = Watch(planned.stage, 0, objective, objective.held_out(), 0, None, None)  # type: ignore[arg-type]
    total, num = 0.0, 0
    with torch.no_grad():
        for item in watch.examples:
            inputs = objective.inputs([item])
            total += float(objective.loss(objective.module, inputs, 1))
            num += objective.num_units(inputs)
        assert watch._loss(objective.module, torch.device("cpu")) == pytest.approx(total / num, rel=1e-5)
