"""Predictions: what autograd keeps, the fit, the check, and the command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio import cli
from pal_audio.bench import estimate, fit, models, shapes
from pal_audio.bench.case import Case, Setup
from pal_audio.bench.estimate import CARDS, Card, Constants, Way
from pal_audio.errors import PalError
from pal_audio.integration import cost

CPU = torch.device("cpu")
MEASURED_HERE = Constants(logit_bytes=4)  # of a logit the forward pass keeps its log-probability alone


@pytest.fixture(autouse=True)
def small_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape large enough for what grows with widths to outweigh what does not."""
    monkeypatch.setitem(shapes.LLMS, "small", shapes._llama(128, 512, 3, 8, 2, 16, 300))


def kept_by_autograd(case: Case) -> int:
    """Bytes of the tensors that one eager forward keeps for its backward pass, weights left out."""
    model = models.build(case, CPU)
    models.training_mode(case, model)
    compute = models.loss_function(case, model, models.make_batch(case, model))
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()
    del loss
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bf16", "autocast"])
@pytest.mark.parametrize("arm", ["text", "plits", "lal", "pal"])
def test_the_count_of_kept_bytes_is_what_autograd_keeps(arm: str, precision: str) -> None:
    setup = Setup(llm="small", encoder="tiny-frames", precision=precision)
    case = Case(setup=setup, integration=arm, batch=2, audio_tokens=96, text_tokens=32, summary=8)
    work, way = case.work(), Way(precision)
    predicted = sum(estimate.kept_bytes(case.llm, work, way, MEASURED_HERE))
    if precision == "autocast":
        predicted += 2 * cost.num_parameters(case.llm, work)
    assert predicted == pytest.approx(kept_by_autograd(case), rel=0.1)


def rows_of(constants: Constants, llm: str = "llama-3.2-1b") -> list[dict[str, Any]]:
    """Rows as a benchmark would write them on a machine that obeys these constants."""
    card, setup, rows = CARDS["h200"], Setup(llm=llm), []
    for arm in ("text", "plits", "lal"):
        for batch, audio in ((4, 256), (16, 1024), (8, 750)):
            case = Case(setup=setup, integration=arm, batch=batch, audio_tokens=audio)
            way = Way("bf16")
            memory = estimate.training_memory(case.llm, case.work(), way, constants)
            rows.append(
                {
                    "key": case.key, "run": "r", "verb": "train", "error": None, "title": case.title(), "case": case.model_dump(),
                    "peak_bytes": memory.peak, "step_s": estimate.step_seconds(case.llm, case.work(), way, card, constants),
                    "rates": {"matrix_flops": card.flops, "bandwidth_bytes": card.bandwidth_bytes},
                    "hardware": {"device": "a card", "memory_bytes": card.memory_bytes},
                }
            )  # fmt: skip
    return rows


def test_rows_that_all_wait_for_the_host_say_nothing_of_the_device() -> None:
    rows = rows_of(Constants(step_launch_s=5.0, launch_s=0.1)) + rows_of(
        Constants(step_launch_s=5.0, launch_s=0.1), "qwen2.5-0.5b"
    )
    with pytest.raises(PalError, match=r"eager bf16: every one of 18 rows waits for the host.*larger batches"):
        fit.fit(rows, "a card")


def test_a_fit_finds_what_made_the_rows_and_its_own_rows_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = Constants(
        text_kept=0.6, audio_kept=0.8, logit_bytes=10.0, linear_cost=1.3, attention_cost=3.0, traffic=4.0,
        step_launch_s=0.01, launch_s=2e-3, audio_launch_s=1e-3,
    )  # fmt: skip
    rows = rows_of(truth) + rows_of(truth, "qwen2.5-0.5b")
    host_s = {llm: 0.01 + layers * 2e-3 for llm, layers in (("llama-3.2-1b", 16), ("qwen2.5-0.5b", 24))}
    waiting = [row["step_s"] == pytest.approx(host_s[row["case"]["setup"]["llm"]]) for row in rows]
    assert 4 <= sum(waiting) <= 10, "some rows wait for the host, others for the device"
    fitted = fit.fit(rows, "a card")["eager bf16"]
    assert fitted.fitted_on == ("llama-3.2-1b", "qwen2.5-0.5b")
    assert "18 rows of llama-3.2-1b, qwen2.5-0.5b" in fitted.provenance
    for name in ("text_kept", "audio_kept", "logit_bytes", "linear_cost", "attention_cost", "traffic"):
        assert getattr(fitted, name) == pytest.approx(getattr(truth, name), rel=0.05), name
    for name in ("step_launch_s", "launch_s", "audio_launch_s"):
        assert getattr(fitted, name) == pytest.approx(getattr(truth, name), rel=0.05), name
    assert fit.summary(fit.check(rows_of(truth, "qwen2.5-1.5b")))["time_error_within"] < 9, "the rule of thumb is not this card"
    monkeypatch.setitem(estimate.CONSTANTS, "eager bf16", fitted)
    own, other = fit.check(rows), fit.check(rows_of(truth, "qwen2.5-1.5b"))
    assert all(row["fitted"] for row in own)
    assert fit.summary(own)["counted"] == 0
    outcome = fit.summary(other)
    assert outcome["counted"] == outcome["memory_error_within"] == outcome["time_error_within"] == 9
    assert outcome["memory_error_max"] < 0.15


def test_coefficients_are_not_negative() -> None:
    found = fit.nonnegative([(1.0, 1.0), (2.0, 2.5), (4.0, 3.0)], [1.0, 2.0, 4.1], [1.0, 1.0, 1.0])
    assert found[0] == pytest.approx(1.02, abs=0.03)
    assert found[1] == 0


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    case = Case(setup=Setup(), integration="plits", batch=1, audio_tokens=750)
    llm, work, way, card = case.llm, case.work(), Way("bf16"), CARDS["24gb"]
    batch = estimate.largest_batch(llm, work, way, card)
    peaks = [estimate.training_memory(llm, replace(work, batch=size), way).peak for size in (batch, batch + 1)]
    assert peaks[0] <= card.memory_bytes < peaks[1]
    assert estimate.largest_batch(llm, work, way, Card(1.0, 1.0, 1.0)) == 0


def test_weights_in_4_bits_are_counted_as_such() -> None:
    """2,818,572,288 weights of Llama-3.2-3B's layers, in float32 otherwise."""
    setup = Setup(llm="llama-3.2-3b", precision="autocast", frozen_llm=True)
    case = Case(setup=setup, integration="lal", batch=8, audio_tokens=188)
    work, way = case.work(), Way("autocast")
    full, four = (estimate.weight_bytes(case.llm, work, each) for each in (way, replace(way, four_bit=True)))
    assert full - four == pytest.approx(2_818_572_288 * (4 - 0.515869140625))
    peaks = [estimate.training_memory(case.llm, work, each).peak for each in (way, replace(way, four_bit=True))]
    assert peaks[0] - peaks[1] > full - four
    assert estimate.inference_memory(case.llm, work, way) > estimate.inference_memory(case.llm, work, replace(way, four_bit=True))


def test_a_recipe_in_4_bits_is_planned_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    peaks = []
    for settings in ([], ["--set", "adapter.type=lora"]):
        assert cli.main(["bench", "plan", "finetune-qlora-24gb", *settings, "--json"]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["rows"][0]["peak_bytes"])
    assert peaks[1] - peaks[0] > 2_818_572_288 * 3


def test_checkpointing_keeps_less_and_costs_more() -> None:
    case = Case(setup=Setup(), integration="lal", batch=16, audio_tokens=1024)
    work, way = case.work(), Way("bf16")
    again = replace(work, checkpointing=True)
    assert estimate.training_memory(case.llm, again, way).peak < estimate.training_memory(case.llm, work, way).peak
    assert cost.step_flops(case.llm, again) > cost.step_flops(case.llm, work)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--llm", "llama-3.2-3b", "--audio-tokens", "750", "--batch", "4", "--projector", "low_rank:256"],
        ["quickstart", "--seconds", "3"],
        ["finetune-lora-24gb", "--card", "24gb"],
        ["finetune-qlora-24gb", "--card", "24gb"],
        ["curriculum-llama-3.2-1b-lal", "--audio-tokens", "255", "--stage", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_command_puts_integrations_side_by_side(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "plan", *arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    by_name = {row["integration"]: row for row in rows}
    assert list(by_name) == ["text", "plits", "lal", "pal"]
    for name in ("step_flops", "peak_bytes", "step_s", "floor_s"):
        assert by_name["text"][name] < by_name["lal"][name] < by_name["plits"][name]
    assert all(row["floor_s"] < row["step_s"] for row in rows)
    provenance = "28 rows of llama-3.2-1b, qwen2.5-0.5b" if arguments[0] == "--llm" else "not fitted"
    assert all(provenance in row["constants"] for row in rows)
    assert cli.main(["bench", "plan", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "largest batch that fits" in shown
    assert provenance in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--llm", "llama-3.2-2b"], "did you mean 'llama-3.2-"),
        (["--card", "h2000"], "did you mean 'h200'?"),
        (["--projector", "low_rank"], "low_rank:R"),
        (["curriculum-llama-3.2-1b-lal"], "say --audio-tokens"),
        (["curriculum-llama-3.2-1b-pal-multi", "--audio-tokens", "99"], "the one `encoder` of a preset; this recipe has"),
        (["quickstart", "--stage", "9"], "stages 0 to"),
        (["quickstart", "--llm", "llama-3.2-1b"], "the recipe says it"),
        (["--check", "results.json"], "No such file"),
        (["quickstart", "--seconds", "3", "--audio-tokens", "99"], "--seconds and --audio-tokens exclude each other"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("option", ["--check", "--fit"])
def test_results_without_a_training_step_are_no_comparison(
    option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = "--llm tiny-llama --encoder tiny-frames --batch 1 --text-tokens 12 --audio-tokens 8 --integrations lal --warmup 1"
    told = ["--repeats", "1", "--new-tokens", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["bench", "infer", *words.split(), *told]) == 0
    capsys.readouterr()
    assert cli.main(["bench", "plan", option, str(tmp_path / "results.json")]) == 2
    assert "no training row with numbers" in capsys.readouterr().err
