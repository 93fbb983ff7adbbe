"""Options that cost or save time and memory keep the numbers of a stage."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio.data.collation import Collator
from pal_audio.data.prepare import prepare
from pal_audio.errors import PalError
from pal_audio.model import PalForConditionalGeneration, build_model
from pal_audio.training.loop import StageRun
from pal_audio.training.objectives import answer
from pal_audio.training.plan import plan_stages
from pal_audio.training.recipe import load_recipe

STEPS = 4
# Dropout draws other numbers where a batch is cut into parts.
EXACT = [f"stages.0.steps={STEPS}", "model.encoder.dropout=0", "model.encoder.spec_augment=false"]


def losses_and_weights(recipe: Path, folder: Path, *overrides: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    settings = load_recipe(recipe, [*EXACT, *overrides])
    data = prepare(settings.data, folder / "data")
    torch.manual_seed(0)
    model, processor = build_model(settings.model, ["what do you hear first?"], None)
    planned = plan_stages(settings, model, Collator(processor), data)[0]
    run = StageRun(planned.stage, 0, 0, folder / "checkpoints", "identity")
    run.run(planned.objective, planned.batches, planned.num_steps, resume=False)
    return [record.loss for record in run.records], {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def plain(recipe: Path, tmp_path: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return losses_and_weights(recipe, tmp_path / "plain", "stages.0.packing=false")


@pytest.mark.parametrize(
    "options",
    [
        ["stages.0.packing=true"],
        ["stages.0.packing=true", "stages.0.checkpointing=true"],
        ["stages.0.packing=false", "stages.0.checkpointing=true"],
        ["stages.0.recompute_audio=true"],
        ["stages.0.recompute_audio=light"],
        ["stages.0.audio_kernel=sdpa"],
        ["stages.0.projections=composed"],
        ["stages.0.recompute_audio=true", "stages.0.checkpointing=true"],
        ["stages.0.recompute_audio=light", "stages.0.checkpointing=true"],
        ["stages.0.packing=true", "stages.0.accumulate=3"],
        ["stages.0.packing=false", "stages.0.accumulate=4"],
    ],
)
def test_options_keep_the_numbers(
    options: list[str], plain: tuple[list[float], dict[str, torch.Tensor]], recipe: Path, tmp_path: Path
) -> None:
    losses, weights = losses_and_weights(recipe, tmp_path / "other", *options)
    assert losses == pytest.approx(plain[0], rel=1e-5)
    # Adam divides by the root of tiny second moments, which magnifies rounding of gradients near zero.
    for name, expected in plain[1].items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("packing", [True, False])
def test_a_packed_batch_on_a_gpu_has_one_of_few_lengths(
    packing: bool,
    plain: tuple[list[float], dict[str, torch.Tensor]],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trained on the CPU by the inputs that a GPU would get."""
    lengths = []

    def as_on_a_gpu(objective: answer.AnswerObjective, inputs: dict[str, Any], _: torch.device) -> dict[str, Any]:
        inputs = on_device(objective, inputs, torch.device("cuda"))
        lengths.append([inputs[name].shape[1] for name in ("input_ids", "attention_mask", "labels")])
        return inputs

    on_device = answer.AnswerObjective.on_device
    monkeypatch.setattr(answer, "to_device", lambda features, _: features)
    monkeypatch.setattr(answer.AnswerObjective, "on_device", as_on_a_gpu)
    losses, _ = losses_and_weights(recipe, tmp_path / "other", f"stages.0.packing={packing}".lower())
    assert losses == pytest.approx(plain[0], rel=1e-5)
    assert len(lengths) >= STEPS
    assert all(len(set(of_batch)) == 1 for of_batch in lengths)
    assert all(of_batch[0] % answer.PACKED_MULTIPLE == 0 for of_batch in lengths) == packing


def test_a_compiled_stage_keeps_the_numbers(
    plain: tuple[list[float], dict[str, torch.Tensor]], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing and its graphs, without generated kernels: those are compared on a GPU (benchmarks/)."""
    calls = []

    def compiled(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, backend="aot_eager", **kwargs)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiled))
    losses, _ = losses_and_weights(recipe, tmp_path / "other", "stages.0.compile=true")
    assert calls
    assert losses == pytest.approx(plain[0], rel=1e-5)


@pytest.mark.parametrize("word", ["auto", "apart", "composed"])
def test_a_stage_says_how_projections_are_made(word: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = PalForConditionalGeneration.encode

    def watched(self: PalForConditionalGeneration, *inputs: Any, **options: Any) -> Any:
        seen.append((self.training, self.projections))
        return encode(self, *inputs, **options)

    monkeypatch.setattr(PalForConditionalGeneration, "encode", watched)
    losses_and_weights(recipe, tmp_path / "run", f"stages.0.projections={word}")
    assert {projections for training, projections in seen if training} == {word}
    with pytest.raises(PalError, match="projections"):
        load_recipe(recipe, ["stages.0.projections=joined"])


def test_batches_by_budget_train(recipe: Path, tmp_path: Path) -> None:
    budget = ["stages.0.batch_size=null", "stages.0.batch_audio_s=9", "stages.0.batch_text_tokens=200"]
    losses, _ = losses_and_weights(recipe, tmp_path / "run", *budget)
    assert len(losses) == STEPS
