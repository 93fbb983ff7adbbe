"""benchmarks/lab/reuse.py: language model and encoders of another lab."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmarks.lab.__main__ import RECIPES, main
from benchmarks.lab.bundle import early_steps
from benchmarks.lab.flow import Flow
from benchmarks.lab.grid import grid_steps
from benchmarks.lab.packing import pack
from benchmarks.lab.rates import rates_of, read_choice, take
from benchmarks.lab.recipes import Shelf
from benchmarks.lab.reuse import take_models

from pal_audio.errors import PalError
from pal_audio.training.recipe import load_recipe


def packed(folder: Path, *names: str) -> Path:
    """What `pack` copies of models made by the lab's own recipes; `bundle-...` those of the bundle."""
    for full in names:
        name = full.removeprefix("bundle-")
        run = folder / "runs" / (full if full != name else f"lab-{name}")
        made = run / ("llm" if name == "lm" else "encoders")
        made.mkdir(parents=True)
        (made / "config.json").write_text("{}")
        (made / "model.safetensors").write_text("weights")
        told = load_recipe(RECIPES / f"{name}.yaml").model_dump(mode="json") | {"workers": 32, "trackers": []}
        (run / "recipe.json").write_text(json.dumps({"recipe": told}))
    (folder / "marks").mkdir(exist_ok=True)
    (folder / "marks" / "lab-lm.json").write_text('{"seconds": 409.0}')
    return folder


def shorten(run: Path) -> None:
    """Let a run have been trained by another recipe, of fewer steps."""
    told = run / "recipe.json"
    content = json.loads(told.read_text())
    content["recipe"]["stages"][0]["steps"] = 2000
    told.write_text(json.dumps(content))


def test_what_another_lab_made_is_not_made_again(tmp_path: Path) -> None:
    there, out = packed(tmp_path / "small", "lm", "encoder-unified"), tmp_path / "out"
    flow = Flow(tmp_path, out, Shelf(RECIPES), arms=["lal", "pal-multi"])
    assert "text-world" in {step.name for step in grid_steps(flow)}
    assert take_models(flow, there) == ["lab-encoder-unified", "lab-lm"]
    steps = {step.name: step for step in grid_steps(flow)}
    assert steps["lab-lm"].done
    assert steps["lab-encoder-unified"].done
    assert not steps["lab-encoder-speech"].done
    assert "text-world" not in steps, "no step needs it"
    assert json.loads(flow.mark("lab-lm").read_text())["seconds"] == 409.0
    (out / "runs" / "lab-lm" / "llm" / "config.json").write_text("ours")
    assert take_models(flow, there) == [], "what is there is kept"
    assert (out / "runs" / "lab-lm" / "llm" / "config.json").read_text() == "ours"


def test_the_bundles_encoders_are_taken_where_it_is_made_and_by_those_who_may_be_the_best_arm(tmp_path: Path) -> None:
    there = packed(tmp_path / "small", "lm", "bundle-encoder-speech", "bundle-encoder-general", "bundle-encoder-unified")
    arms = {"arms": ["pal-multi", "plits"], "candidates": ["pal-multi"], "workers": 2}
    assert take_models(Flow(tmp_path, tmp_path / "scored", Shelf(RECIPES), **arms), there) == ["lab-lm"]
    flow = Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), **arms)
    assert take_models(flow, there, bundle=True) == ["bundle-encoder-general", "bundle-encoder-speech", "lab-lm"]
    is_done = {step.name: step.done for step in early_steps(flow, tmp_path / "model")}
    assert is_done["bundle-encoder-general"]
    assert is_done["bundle-encoder-speech"]
    assert not is_done["world-dev"], "their frames are still to be made"
    assert not is_done["frames-bundle-general+speech"]


def test_the_bundles_encoders_are_those_of_the_best_arm_once_it_is_known(tmp_path: Path) -> None:
    """It need not be among the arms that this call names."""
    there = packed(tmp_path / "small", "bundle-encoder-speech", "bundle-encoder-general", "bundle-encoder-unified")
    flow = Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["lal"])
    flow.mark("best").parent.mkdir(parents=True)
    flow.mark("best").write_text('{"arm": "pal-multi"}')
    assert take_models(flow, there, bundle=True) == ["bundle-encoder-general", "bundle-encoder-speech"]


def test_a_mark_may_lack_its_seconds(tmp_path: Path) -> None:
    there, flow = packed(tmp_path / "small", "lm"), Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["lal"])
    (there / "marks" / "lab-lm.json").write_text("{}")
    assert take_models(flow, there) == ["lab-lm"]
    assert json.loads(flow.mark("lab-lm").read_text())["seconds"] == 0


def test_the_bundles_encoders_are_packed_once_they_have_ended(tmp_path: Path) -> None:
    """Half-trained they could not be gone on with: their recipes name files of the OUT that they began in."""
    out = packed(tmp_path / "out", "bundle-encoder-speech", "bundle-encoder-general", "encoder-speech")
    (out / "lab.json").write_text("{}")
    for name in ("bundle-encoder-general", "lab-encoder-speech"):
        shutil.rmtree(out / "runs" / name / "encoders")
    pack(out, tmp_path / "small")
    assert {path.name for path in (tmp_path / "small" / "runs").iterdir()} == {"bundle-encoder-speech", "lab-encoder-speech"}


def test_an_encoder_of_the_bundle_by_another_recipe_is_refused(tmp_path: Path) -> None:
    there = packed(tmp_path / "small", "bundle-encoder-speech")
    shorten(there / "runs" / "bundle-encoder-speech")
    flow = Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["pal-multi"])
    with pytest.raises(PalError, match=r"bundle-encoder-speech.*encoder-speech\.yaml \(stages differ\)"):
        take_models(flow, there, bundle=True)


def test_a_model_older_than_a_key_of_recipes_has_its_default(tmp_path: Path) -> None:
    there = packed(tmp_path / "small", "lm")
    told = there / "runs" / "lab-lm" / "recipe.json"
    content = json.loads(told.read_text())
    del content["recipe"]["stages"][0]["audio_kernel"]
    told.write_text(json.dumps(content))
    assert take_models(Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["lal"]), there) == ["lab-lm"]
    content["recipe"]["stages"][0]["of_another_version"] = 1
    told.write_text(json.dumps(content))
    with pytest.raises(PalError, match=r"cannot be compared.*of_another_version.*leave it out of --models"):
        take_models(Flow(tmp_path, tmp_path / "other", Shelf(RECIPES), arms=["lal"]), there)


def test_models_of_another_recipe_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    there = packed(tmp_path / "small", "lm", "encoder-unified")
    shorten(there / "runs" / "lab-lm")
    flow = Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["lal"])
    with pytest.raises(PalError, match=r"lab-lm.recipe\.json: trained by another recipe than .*lm\.yaml \(stages differ\)"):
        take_models(flow, there)
    assert not (tmp_path / "out" / "runs").exists()
    looked_for = r"no model of a lab is there \(looked for recipe.json and weights in runs/NAME of lab-encoder-unified, lab-lm\)"
    with pytest.raises(PalError, match=looked_for):
        take_models(flow, tmp_path / "elsewhere")


def test_a_default_that_is_written_out_and_when_it_was_saved_make_no_other_recipe(tmp_path: Path) -> None:
    there, flow = packed(tmp_path / "small", "encoder-unified"), Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), ["lal"])
    told = there / "runs" / "lab-encoder-unified" / "recipe.json"
    content = json.loads(told.read_text())
    content["recipe"]["model"]["encoder"]["fft_samples"] = 1024
    told.write_text(json.dumps(content))
    with pytest.raises(PalError, match=r"model differ"):
        take_models(flow, there)
    content["recipe"]["model"]["encoder"]["fft_samples"] = 512
    content["recipe"]["stages"][0]["save_every"] = 7
    told.write_text(json.dumps(content))
    assert take_models(flow, there) == ["lab-encoder-unified"]


def test_what_has_not_ended_or_lacks_its_weights_is_not_taken(tmp_path: Path) -> None:
    there, flow = packed(tmp_path / "small", "lm", "encoder-unified"), Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), ["lal"])
    shutil.rmtree(there / "runs" / "lab-encoder-unified" / "encoders")
    assert take_models(flow, there) == ["lab-lm"]
    assert not flow.mark("lab-encoder-unified").exists()
    assert not (flow.out / "runs" / "lab-encoder-unified").exists(), "a step would go on with it and find other data"
    (there / "runs" / "lab-lm" / "llm" / "model.safetensors").unlink()
    with pytest.raises(PalError, match="no model of a lab is there"):
        take_models(Flow(tmp_path, tmp_path / "other", Shelf(RECIPES), ["lal"]), there)


def test_a_mark_without_its_model_does_not_keep_it_out(tmp_path: Path) -> None:
    there, flow = packed(tmp_path / "small", "lm"), Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), ["lal"])
    take_models(flow, there)
    shutil.rmtree(flow.out / "runs")
    assert take_models(flow, there) == ["lab-lm"]
    assert (flow.out / "runs" / "lab-lm" / "llm" / "model.safetensors").is_file()


def test_a_copy_that_was_stopped_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, flow = packed(tmp_path / "small", "lm"), Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), ["lal"])
    copytree = shutil.copytree

    def stopped(*args: Any, **options: Any) -> None:
        copytree(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", stopped)
        with pytest.raises(KeyboardInterrupt):
            take_models(flow, there)
    assert not (flow.out / "runs" / "lab-lm").exists()
    assert take_models(flow, there) == ["lab-lm"]


def test_an_own_run_without_a_mark_is_taken_from_itself(tmp_path: Path) -> None:
    out = packed(tmp_path / "out", "lm")
    (out / "marks" / "lab-lm.json").unlink()
    assert take_models(Flow(tmp_path, out, Shelf(RECIPES), ["lal"]), out) == ["lab-lm"]
    assert (out / "runs" / "lab-lm" / "llm" / "model.safetensors").is_file()


def swept(folder: Path, *families: str) -> Path:
    """What a lab's sweep leaves."""
    for family in families:
        rows = [
            {"step": f"{family}-x{factor:g}", "factor": factor, "held_out": {"right": 0.8, "num": 9}, "loss": {"held_out": None}}
            for factor in (0.35, 0.7, 1.4)
        ]
        for row in rows:
            write(folder / "sweep" / f"{row['step']}.json", row)
        write(folder / "rates" / f"{family}.json", {"step": f"rate-{family}", "factor": 0.7, "tried": rows})
    return folder


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_rates_of_another_lab_are_not_tried_again(tmp_path: Path) -> None:
    there = swept(tmp_path / "small", "lal", "pal", "plits")
    flow = Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["lal", "pal-multi"])
    assert take(rates_of(flow, there)) == ["lal", "pal"]
    steps = {step.name: step for step in grid_steps(flow)}
    assert all(steps[name].done for name in ("rate-lal", "lal-x0.35", "lal-x1.4", "rate-pal"))
    assert flow.factor_of(flow.shelf.recipe("arms/pal-multi")) == 0.7
    assert read_choice(flow.out / "rates" / "lal.json")["taken"] is True, "the report says so"
    assert rates_of(flow, there) == {}, "what is there is kept"


def test_a_sweep_that_was_begun_is_the_labs_own(tmp_path: Path) -> None:
    there, flow = swept(tmp_path / "small", "lal", "pal"), Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), arms=["lal", "pal"])
    write(flow.out / "sweep" / "lal-x0.7.json", {"factor": 0.7})
    assert take(rates_of(flow, there)) == ["pal"]
    assert not (flow.out / "sweep" / "lal-x0.35.json").exists()


def test_rates_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, out = swept(tmp_path / "small", "lal", "pal"), tmp_path / "out"

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(PalError, match=match):
            rates_of(Flow(tmp_path, out, Shelf(RECIPES), **{"arms": ["lal", "pal"]} | options), there)

    refused(r"tried 0\.35, 0\.7, 1\.4 of the rates; give --factors likewise", factors=(0.35, 0.7))
    refused(r"rates/plits\.json, sweep/plits-x0\.35\.json.* not there", arms=["lal", "plits"])
    words = ["run", "--root", str(tmp_path), "--out", str(out), "--device", "cpu", "--rates", str(there), "--minutes", "0"]
    assert main([*words, "--arms", "lal", "--factors", "0.7,1.4"]) == 2
    assert "give --factors likewise" in capsys.readouterr().err
    assert not out.exists(), "another call may give other factors"
    write(there / "rates" / "lal.json", {"factor": 9.9, "tried": []})
    refused(r"lal\.json: no choice of learning rates")
    run = there / "sweep" / "lal-x0.7.json"
    for content in ("{bad", "[1]"):
        swept(there, "lal")
        run.write_text(content)
        refused(r"lal-x0\.7\.json: damaged")
    run.unlink()
    refused(r"sweep/lal-x0\.7\.json not there")
    there = tmp_path / "nowhere"
    refused("no such folder")
