"""A step of each objective: the same however it is cut, and the same after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pal_audio.data.collation import Collator
from pal_audio.data.prepare import prepare
from pal_audio.training.device import to_device
from pal_audio.training.objectives import OBJECTIVES
from pal_audio.training.outcome import build, texts_of
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.training.objectives.made import ENCODER, LLM, example, manifest, recipe, spelt, texts

KINDS = ("text", "ctc", "tags", "many tags")


def written(folder: Path, kind: str, **stage: Any) -> Path:
    """A recipe of one objective over a few examples of unequal length."""
    model: dict[str, Any] = {"encoder": {**ENCODER, "window_s": 0.5, "dropout": 0.2}}
    data = [spelt(folder, "train", 8, 0)], [spelt(folder, "test", 8, 0)]
    stage = {"objective": kind, "train": {"encoder": 1e-3, "head": 3e-3}, **stage}
    if kind == "text":
        model, stage["train"], stage["max_tokens"] = {"llm": LLM}, {"llm": 1e-3}, 12
        data = [{"text": texts(folder / "a.txt", 20, 0)}, data[0][0]], [{"text": texts(folder / "b.txt", 4, 1)}]  # type: ignore[assignment]
    if kind == "tags":
        stage["task"] = "spell"
    if kind == "many tags":
        stage["objective"] = "tags"
        several = [
            example(folder, f"m{i}", s, None, i, labels=sorted(set(s))) for i, s in enumerate(("ab", "c", "aca", "", "bb", "abc"))
        ]
        data = [manifest(folder, "many", several)], [manifest(folder, "many", several)]
    return recipe(folder, model, *data, stage)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_does_not_depend_on_how_it_is_cut(kind: str, tmp_path: Path) -> None:
    """Loss and every gradient of 6 items at once, and in parts of 4 and 2 divided by the units of both."""
    made = load_recipe(written(tmp_path, kind, steps=1))
    torch.manual_seed(0)
    data = prepare(made.data, tmp_path / "data", answered=False)
    model, processor = build(made, texts_of(data.train()))
    objective = OBJECTIVES[made.stages[0].objective](model, Collator(processor), made.stages[0])  # type: ignore[arg-type]
    items = objective.prepare(data.train(), data.test)[:6]
    objective.parameter_groups()
    objective.module.eval()  # without dropout, which differs from part to part
    gradients, sums = [], []
    for cut in ([items], [items[:4], items[4:]], [[item] for item in items]):
        parts = [objective.inputs(part) for part in cut]
        num_units = sum(objective.num_units(part) for part in parts)
        losses = [objective.loss(objective.module, to_device(part, torch.device("cpu")), num_units) for part in parts]
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        sums.append(sum(float(loss.detach()) for loss in losses))
        trained = [parameter for parameter in objective.module.parameters() if parameter.requires_grad]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None]))
        objective.module.zero_grad()
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_parts_make_the_same_run(kind: str, tmp_path: Path) -> None:
    logs = []
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        path = written(folder, kind, steps=1, accumulate=accumulate)
        off = [] if kind == "text" else ["model.encoder.dropout=0"]
        log = (train(path, off, out=folder / "run") / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in log])
    for one, two in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("streams", [{}, {"preset": "lal", "encoder": ENCODER}])
def test_checkpointed_layers_give_the_same_text_run(streams: dict[str, Any], tmp_path: Path) -> None:
    model = [f"model.{key}={json.dumps(value)}" for key, value in streams.items()]
    path = written(tmp_path, "text", steps=2)
    plain, again = (
        (train(path, [*model, f"stages.0.checkpointing={on}"], out=tmp_path / on) / "log.jsonl").read_text().splitlines()
        for on in ("false", "true")
    )
    assert [json.loads(line)["loss"] for line in plain] == [json.loads(line)["loss"] for line in again]


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_bits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 4, two steps after a checkpoint: encoder, head and what is written at the end are bit-equal."""
    path = written(tmp_path, kind, steps=6, save_every=2)
    whole = train(path, out=tmp_path / "whole")
    clip, left = Accelerator.clip_grad_norm_, 4

    def killed(self: Accelerator, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        return clip(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "clip_grad_norm_", killed)
        with pytest.raises(Killed):
            train(path, out=tmp_path / "killed")
    assert [item.name for item in (tmp_path / "killed" / "checkpoints-0").iterdir()] == ["00000002"]
    resumed = train(path, out=tmp_path / "killed", resume=True)
    files = [file.relative_to(whole) for file in whole.rglob("*.safetensors")]
    assert len(files) >= 3
    for file in files:
        one, two = load_file(whole / file), load_file(resumed / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items()), file
    assert (whole / "scores.json").read_text() == (resumed / "scores.json").read_text()
