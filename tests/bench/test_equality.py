"""benchmarks/equality.py on the CPU: every fast path is equal, and one that is not ends it with status 1."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import equality

from pal_audio.bench.case import Case, Setup
from pal_audio.errors import PalError

TINY = "--llm tiny-llama --encoder tiny-frames --batch 2 --audio-tokens 24 --text-tokens 12 --new-tokens 3 --device cpu".split()


def test_every_fast_path_is_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = equality.main([*TINY, "--precisions", "float32,bf16", "--out", str(tmp_path)])
    assert "the same" in capsys.readouterr().out
    assert json.loads((tmp_path / "equality.json").read_text())["rows"] == rows
    of_lal = [row["way"] for row in rows if (row["integration"], row["precision"]) == ("lal", "float32")]
    assert of_lal == [*equality.FAST, "greedy, memory one for each row", "greedy, memory shared"]
    rounding = [row["gradient"] for row in rows if row["precision"] == "bf16"]
    assert min(rounding) > 1e-4 > max(row["gradient"] for row in rows if row["precision"] == "float32" and "gradient" in row)


def test_on_a_gpu_packed_steps_attend_by_the_kernel_or_fail() -> None:
    def case(integration: str, llm: str = "llama-3.2-1b") -> Case:
        return Case(setup=Setup(llm=llm), integration=integration)

    gpu = torch.device("cuda")
    ways = equality.ways_of(case("pal"), True, gpu)
    assert {name for name, way in ways.items() if way.get("audio_kernel") == "triton"} == {
        name for name, way in (equality.FAST | equality.COMPILED).items() if way.get("packed")
    }
    assert [name for name, way in ways.items() if way.get("audio_kernel") == "sdpa"] == ["joined audio", "joined audio, compiled"]
    for other, device in ((case("lal"), torch.device("cpu")), (case("plits"), gpu), (case("lal", "tiny-llama"), gpu)):
        assert not any("audio_kernel" in way for way in equality.ways_of(other, True, device).values())


def test_a_fast_path_that_differs_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    exact = equality.compute

    def off(case: Case, device: torch.device) -> Any:
        found = exact(case, device)
        return found if case.setup.kernel == "eager" else replace(found, loss=found.loss * 1.01)

    monkeypatch.setattr(equality, "compute", off)
    with pytest.raises(SystemExit) as ended:
        equality.main([*TINY, "--integrations", "lal", "--precisions", "float32"])
    assert ended.value.code == 1
    assert "not equal" in capsys.readouterr().out


def test_a_way_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"error": "RuntimeError: no"}
    assert equality.failed(row, 1.0)
    assert equality.failed({"error": None, "same_tokens": False, "logits": 0.0}, 1.0)
    rounded = {"error": None, "precision": "bf16", "loss": 0.5, "gradient": 0.5}
    assert not equality.failed(rounded | {"of_eager": 2.9}, 1e-4)
    assert equality.failed(rounded | {"of_eager": 3.1}, 1e-4)
    assert equality.failed(rounded | {"of_eager": float("nan")}, 1e-4)


def test_an_unknown_llm_is_named_in_a_line() -> None:
    with pytest.raises(PalError, match="llm 'nope' is unknown"):
        equality.main(["--llm", "nope", "--device", "cpu"])


def test_a_way_whose_rounding_is_worse_than_eager_s_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = equality.compute

    def off(case: Case, device: torch.device) -> Any:
        found = exact(case, device)
        if case.setup.kernel == "eager" or case.setup.precision == "float32":
            return found
        return replace(found, gradients={name: 2 * gradient for name, gradient in found.gradients.items()})

    monkeypatch.setattr(equality, "compute", off)
    with pytest.raises(SystemExit) as ended:
        equality.main([*TINY, "--integrations", "lal", "--precisions", "bf16"])
    assert ended.value.code == 1


def test_a_small_tensor_that_is_noise_hides_no_other_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = equality.compute

    def off(case: Case, device: torch.device) -> Any:
        found = exact(case, device)
        if case.setup.precision == "float32":
            return found
        others = 2 if case.setup.projections == "composed" else 1
        least = min(found.gradients, key=lambda name: float(found.gradients[name].norm()))
        times = {name: 100 if name == least else others for name in found.gradients}
        return replace(found, gradients={name: times[name] * value for name, value in found.gradients.items()})

    monkeypatch.setattr(equality, "compute", off)
    with pytest.raises(SystemExit):
        equality.main([*TINY, "--integrations", "lal", "--precisions", "bf16", "--ways", "composed"])


def test_a_number_that_is_none_is_not_equal() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert equality.difference(nan, torch.ones(2)) == equality.difference(torch.ones(2), nan) == float("inf")


def test_ways_by_name_and_low_rank_maps_that_are_not_zero(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "--integrations", "lal", "--projector", "low_rank:4", "--precisions", "float32"]
    rows = equality.main([*options, "--ways", "recompute"])
    assert [row["way"] for row in rows] == ["recompute_audio light", "recompute_audio full"]
    assert len(rows[0]["worst"]) == equality.NUM_WORST < rows[0]["num_gradients"]
    assert rows[0]["gradient"] == max(rows[0]["worst"].values())
    with pytest.raises(PalError, match="--ways nothing: no way of lal has that in its name"):
        equality.main([*options, "--ways", "nothing"])
    setup = Setup(llm="tiny-llama", encoder="tiny-frames")
    case = Case(setup=setup, integration="lal", batch=2, audio_tokens=24, projector="low_rank:4")
    found = equality.compute(case, torch.device("cpu")).gradients
    downs = [name for name in found if name.endswith(".down.weight")]
    assert downs
    assert all(found[name].abs().max() > 0 for name in downs)


def test_prompts_by_a_decoder_are_compared_and_none_passes_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "WAYS", ("plain", "captured"))  # compiling takes half a minute
    options = {"setup": Setup(llm="tiny-llama", encoder="tiny-frames"), "integration": "lal", "batch": 2}
    case = Case(audio_tokens=24, text_tokens=12, **options)
    rows = list(equality.generation_rows(case, torch.device("cpu"), 3, True))
    held = ["memory one for each row", "memory shared"]
    assert [row["way"] for row in rows] == [f"{way}, {name}" for name in held for way in ("greedy", "greedy, captured prefill")]
    assert not any(equality.failed(row, 1e-4) for row in rows)
    monkeypatch.setattr(equality.Decoder, "_why_plain_prefill", lambda *_: "a reason")
    rows = list(equality.generation_rows(case, torch.device("cpu"), 3, True))
    assert [row["error"] for row in rows] == [
        "RuntimeError: prefill plain: a reason",
        "RuntimeError: prefill captured: a reason",
    ] * 2
    assert all(equality.failed(row, 1e-4) for row in rows)
