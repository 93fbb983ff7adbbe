"""benchmarks/lab: which steps there are, what each waits for, and how cores are shared out. Nothing runs here."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benchmarks.lab import __main__ as main_module
from benchmarks.lab import bundle as bundle_module
from benchmarks.lab import flow as flow_module
from benchmarks.lab.__main__ import RECIPES
from benchmarks.lab.flow import Flow
from benchmarks.lab.grid import grid_steps
from benchmarks.lab.questions import GROUP_OF
from benchmarks.lab.recipes import LabRecipe, Shelf
from benchmarks.lab.steps import Step

from pal_audio.data.mixing.tasks import TASK_KINDS
from pal_audio.errors import PalError
from tests.lab_recipes import make_recipes


def grid(tmp_path: Path, **options: object) -> dict[str, Step]:
    """The whole grid of the real recipes."""
    flow = Flow(tmp_path, tmp_path, Shelf(RECIPES), **options)  # type: ignore[arg-type]
    return {step.name: step for step in grid_steps(flow)}


def setting(step: Step, name: str) -> str | None:
    """The value behind `--NAME`, or of `--set NAME=` in the step's only command."""
    (words,) = step.commands()
    if f"--{name}" in words:
        return words[words.index(f"--{name}") + 1]
    return next((word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")), None)


def test_nothing_waits_without_need(tmp_path: Path) -> None:
    steps = grid(tmp_path)
    for name in ("lab-encoder-general", "lab-encoder-speech", "lab-encoder-unified"):
        assert steps[name].needs == ("world",)
    assert steps["lab-lm"].needs == ("text-world",), "it waits for no sound"
    assert steps["frames-unified"].needs == ("tests", "lab-encoder-unified"), "frames need no language model"
    assert steps["frames-general+speech"].needs == ("tests", "lab-encoder-general", "lab-encoder-speech")
    assert set(steps["lal-x0.7"].needs) == {"tests", "lab-lm", "lab-encoder-unified", "frames-unified"}
    assert steps["conditions"].needs == ("tests",)


@pytest.mark.parametrize(
    ("data", "worlds"),
    [
        ("{train: [text-world/train.jsonl], test: [world/test.jsonl]}", ("text-world", "world")),
        ("{train: [{path: text-world/train.jsonl, weight: 2}, {text: words.txt}]}", ("text-world",)),
        ("{train: [{text: words.txt}], test: [{text: words.txt}]}", ("world",)),
        ("{train: [/elsewhere/train.jsonl, mine/train.jsonl, train.jsonl]}", ("world",)),
        ("{train: world/train.jsonl}", ("world",)),
    ],
)
def test_a_base_waits_for_the_worlds_that_its_data_names(data: str, worlds: tuple[str, ...], tmp_path: Path) -> None:
    folder = make_recipes(tmp_path / "recipes")
    recipe = (folder / "lm.yaml").read_text()
    (folder / "lm.yaml").write_text(
        "\n".join(f"data: {data}" if line.startswith("data:") else line for line in recipe.splitlines())
    )
    steps = {step.name: step for step in grid_steps(Flow(tmp_path, tmp_path, Shelf(folder)))}
    assert steps["lab-lm"].needs == worlds
    assert ("text-world" in steps) == ("text-world" in worlds)


def test_no_text_is_composed_for_a_language_model_that_is_there(tmp_path: Path) -> None:
    flow = Flow(tmp_path, tmp_path, Shelf(make_recipes(tmp_path / "recipes")))
    assert "text-world" in {step.name for step in grid_steps(flow)}
    (tmp_path / "runs" / "lab-lm" / "llm").mkdir(parents=True)
    flow.mark("lab-lm").parent.mkdir()
    flow.mark("lab-lm").write_text("{}")
    assert "text-world" not in {step.name for step in grid_steps(flow)}


def test_what_most_need_and_what_takes_longest_comes_first(tmp_path: Path) -> None:
    names = list(grid(tmp_path))
    assert names[:3] == ["world", "text-world", "tests"]
    assert names[3:7] == ["lab-encoder-unified", "lab-lm", "lab-encoder-general", "lab-encoder-speech"]
    assert names.index("frames-unified") < names.index("frames-general+speech")
    tried = [name for name in names if name.endswith("-x0.7")]
    assert tried == ["plits-x0.7", "flamingo-x0.7", "pal-x0.7", "lal-x0.7"]
    first = [name for name in names if name.endswith("-0") and not name.startswith("robust")][:10]
    assert first[:2] == ["plits-0", "pal-multi-0"]
    assert first[-1] == "blind-0"
    assert names.index("blind-0") < names.index("plits-1"), "a part of the grid has whole seeds"


@pytest.mark.parametrize(
    ("cores", "unified", "speech", "frames", "robust"), [(64, 32, 16, 32, 21), (16, 8, 4, 8, 5), (4, 2, 1, 2, 1)]
)
def test_steps_that_read_sound_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, unified: int, speech: int, frames: int, robust: int
) -> None:
    monkeypatch.setattr(flow_module, "num_cores", lambda: cores)
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "best.json").write_text('{"arm": "lal"}')
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "lal.json").write_text('{"factor": 1}')
    steps = grid(tmp_path, jobs=16)
    assert setting(steps["lab-encoder-unified"], "workers") == str(unified)
    assert setting(steps["lab-encoder-general"], "workers") == setting(steps["lab-encoder-speech"], "workers") == str(speech)
    assert setting(steps["frames-unified"], "workers") == setting(steps["frames-general+speech"], "workers") == str(frames)
    assert setting(steps["robust-0"], "workers") == str(robust)
    assert setting(steps["lab-lm"], "workers") is None
    assert setting(steps["lal-x0.7"], "workers") is None, "frames are mapped, not read"


def test_a_step_that_runs_alone_or_on_two_cores_takes_what_pal_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, jobs in ((64, 1), (2, 4)):
        monkeypatch.setattr(flow_module, "num_cores", lambda cores=cores: cores)
        steps = grid(tmp_path, jobs=jobs)
        assert {setting(steps[name], "workers") for name in ("lab-encoder-unified", "frames-unified")} == {None}
    one = grid(tmp_path, jobs=4, arms=["lal"])
    monkeypatch.setattr(flow_module, "num_cores", lambda: 8)
    assert setting(grid(tmp_path, jobs=4, arms=["lal"])["lab-encoder-unified"], "workers") == "8", "the only one that reads"
    assert "lab-encoder-speech" not in one


def test_an_ablation_that_is_named_is_an_arm_of_all_seeds(tmp_path: Path) -> None:
    steps = grid(tmp_path, arms=["pal-multi", "plits-multi"], seeds=(0, 1))
    assert {name for name, step in steps.items() if step.kind == "arm"} == {
        "pal-multi-0", "pal-multi-1", "plits-multi-0", "plits-multi-1",
    }  # fmt: skip
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "best.json").write_text('{"arm": "plits-multi"}')
    assert Flow(tmp_path, tmp_path, Shelf(RECIPES), arms=["plits-multi"]).best().path.parent.name == "ablations"


@pytest.mark.parametrize("arms", [None, ["pal-multi", "plits-multi"], ["plits-pooled"], ["blind"]])
def test_steps_stand_behind_what_they_need(tmp_path: Path, arms: list[str] | None) -> None:
    """Also where rates are tried with an arm that was not chosen and hears by another encoder."""
    names: set[str] = set()
    for step in grid(tmp_path, arms=arms).values():
        assert {*step.needs, *step.follows} <= names, step.name
        names.add(step.name)
    if arms is not None:
        assert names >= {"lab-encoder-unified", "frames-unified"}


def test_an_arm_that_only_rates_would_need_is_left_out_where_they_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "rates").mkdir()
    for family in ("pal", "plits"):
        (tmp_path / "rates" / f"{family}.json").write_text('{"factor": 1}')
    steps = grid(tmp_path, arms=["pal-multi", "plits-multi"])
    assert "lab-encoder-unified" not in steps
    assert all({*step.needs, *step.follows} <= steps.keys() for step in steps.values())


def test_a_run_for_its_time_is_asked_little(tmp_path: Path) -> None:
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "lal.json").write_text('{"factor": 1}')
    step = grid(tmp_path, pace_steps=60)["pace-lal"]
    (words,) = step.commands()
    given = [word for word in words if word.startswith("data.test=")]
    assert '"first": 8' in given[-1], "the last one holds"
    assert step.alone


def test_the_best_arm_is_one_that_can_be_bundled(tmp_path: Path) -> None:
    steps = grid(tmp_path, arms=["lal", "flamingo", "blind"], seeds=(0, 1))
    scores = {"flamingo": (0.9, 0.9, 10_700_000), "lal": (0.8, 0.7, 8_700_000), "blind": (0.1, 0.2, 8_300_000)}

    def write(arm: str, seed: int, size: int) -> None:
        task = {"values": {}, "score": scores[arm][seed]}
        mark = steps[f"{arm}-{seed}"].mark
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(json.dumps({"arm": arm, "tasks": {"sound": task}, "parameters": {"total": size}}))

    for arm, (*_, size) in scores.items():
        write(arm, 0, size)
    with pytest.raises(PalError, match="no arm has finished"):
        steps["best"].finish()
    for arm, (*_, size) in scores.items():
        write(arm, 1, size)
    best = steps["best"].finish()
    assert (best["arm"], best["too_large"]) == ("lal", ["flamingo"])
    assert best["means"] == pytest.approx({"flamingo": 0.9, "lal": 0.75, "blind": 0.15})
    for arm in scores:
        write(arm, 1, 10**8)
    with pytest.raises(PalError, match="take a smaller LM"):
        steps["best"].finish()


def assert_order(steps: list[Step]) -> None:
    before: set[str] = set()
    for step in steps:
        assert before >= {*step.needs, *step.follows}, step.name
        before.add(step.name)
    assert len(before) == len(steps)


@pytest.mark.parametrize("arm", ["lal", "pal-multi", "blind"])
def test_every_step_of_the_bundle_stands_behind_what_it_needs(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both alone, after a grid, and with what is made early, where another arm may have been guessed."""
    monkeypatch.setattr(bundle_module, "read_grid", lambda out: None)
    flow = Flow(tmp_path, tmp_path, Shelf(RECIPES))
    for folder in ("marks", "rates"):
        (tmp_path / folder).mkdir()
    (tmp_path / "marks" / "best.json").write_text(json.dumps({"arm": arm}))
    for family in ("lal", "pal"):
        (tmp_path / "rates" / f"{family}.json").write_text('{"factor": 1}')
    early = bundle_module.early_steps(flow, tmp_path / "model")
    after = bundle_module.bundle(flow, tmp_path / "model")
    for steps in (main_module._beside(grid_steps(flow), early), after):
        assert_order(steps)
    assert {step.name for step in early} == {step.name for step in after} | {"as-scored"}, "the best arm is known"


def test_what_most_candidates_hear_by_is_made_early(tmp_path: Path) -> None:
    early = bundle_module.early_steps(Flow(tmp_path, tmp_path, Shelf(RECIPES)), tmp_path / "model")
    assert [step.name for step in early] == ["world-dev", "bundle-encoder-unified", "frames-bundle-unified", "as-scored"]
    assert early[0].needs == ("frames-unified",), "the arms' own sound has the cores first"


@pytest.mark.parametrize("tried", [True, False])
def test_the_best_of_one_candidate_waits_for_no_other_arm(tried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to be asked about other sound nor to be trained again for the bundle, whose rate may still be unknown."""
    monkeypatch.setattr(bundle_module, "read_grid", lambda out: None)
    flow = Flow(tmp_path, tmp_path, Shelf(RECIPES), ["plits", "pal-multi"], seeds=(0, 1), candidates=["pal-multi"])
    rate = tmp_path / "rates" / "pal.json"
    rate.parent.mkdir()
    if not tried:
        rate.write_text('{"factor": 0.7}')
    listed = main_module._beside(grid_steps(flow), bundle_module.early_steps(flow, tmp_path / "model"))
    assert_order(listed)
    steps = {step.name: step for step in listed}
    assert steps["best"].follows == ("pal-multi-0", "pal-multi-1")
    assert steps["world-dev"].needs == ("world",)
    assert set(steps["bundle-arm"].needs) == {"frames-bundle-general+speech", "lab-lm", "rate-pal"}
    assert set(steps["bundle"].needs) == {"bundle-arm", "best"}
    assert steps["bundle"].follows == ("as-scored",), "they share a calibration"
    names = list(steps)
    assert names[names.index("best") + 1] == "as-scored", (
        "a model that is there should the time be up, also where one step runs at once"
    )
    rate.write_text('{"factor": 0.7}')
    (command,) = steps["bundle-arm"].commands()
    trained = json.loads(Path(command[1]).read_text())
    assert trained["stages"][0]["train"] == pytest.approx({"connector": 7e-4, "projector": 7e-4, "llm": 7e-4})
    assert "runs/bundle-encoder-general/encoders/audio" in json.dumps(trained)


def test_the_best_of_some_waits_for_these_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own second world begins with the first one, and the best one's retraining as soon as it is known."""
    monkeypatch.setattr(bundle_module, "read_grid", lambda out: None)
    arms, names = ["lal", "plits", "pal-multi", "pal-multi-slow-llm"], ("marks", "rates")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "rates" / "pal.json").write_text('{"factor": 0.5}')

    def listed(*candidates: str) -> dict[str, Step]:
        flow = Flow(tmp_path, tmp_path, Shelf(RECIPES), arms, seeds=(0,), candidates=list(candidates))
        steps = main_module._beside(grid_steps(flow), bundle_module.early_steps(flow, tmp_path / "model"))
        assert_order(steps)
        return {step.name: step for step in steps}

    steps = listed("pal-multi", "pal-multi-slow-llm")
    assert steps["best"].follows == ("pal-multi-0", "pal-multi-slow-llm-0")
    assert steps["world-dev"].needs == ("world",)
    assert steps["bundle-arm"].needs == ("frames-bundle-general+speech", "best"), "lal and plits hear by another encoder"
    (tmp_path / "marks" / "best.json").write_text('{"arm": "pal-multi-slow-llm"}')
    (command,) = steps["bundle-arm"].commands()
    trained = json.loads(Path(command[1]).read_text())
    assert trained["stages"][0]["train"] == pytest.approx({"connector": 5e-4, "projector": 5e-4, "llm": 2.5e-4})
    (tmp_path / "marks" / "best.json").unlink()
    steps = listed("lal", "pal-multi")
    assert "frames-bundle-unified" in steps
    assert "bundle-arm" not in steps, "which encoders it takes is known with the best arm alone"


def test_candidates_are_arms_of_the_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu", "--arms", "lal,plits"]
    assert main_module.main([*words, "--best", "pal"]) == 2
    assert "--best pal: no arm of this run (ablations are named in --arms); there are lal, plits" in capsys.readouterr().err
    assert main_module.main([*words, "--best", ""]) == 2
    assert "--best : no arm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_candidates_that_leave_out_the_best_arm_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else one arm is trained for the bundle and another one's card is written."""
    (tmp_path / "out" / "marks").mkdir(parents=True)
    (tmp_path / "out" / "marks" / "best.json").write_text('{"arm": "lal"}')
    words = ["run", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu", "--arms", "lal,plits"]
    assert main_module.main([*words, "--best", "plits"]) == 2
    assert "has lal as its best arm" in capsys.readouterr().err
    flow = Flow(tmp_path, tmp_path / "out", Shelf(RECIPES), ["plits"])
    rate = tmp_path / "out" / "rates" / "lal.json"
    rate.parent.mkdir()
    rate.write_text('{"factor": 1}')
    steps = {step.name: step for step in bundle_module.early_steps(flow, tmp_path / "model")}
    (command,) = steps["bundle-arm"].commands()
    assert json.loads(Path(command[1]).read_text())["name"] == "lab-lal", "arms that were chosen later change no best one"


def test_a_bundle_is_of_the_arm_that_was_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "marks").mkdir()
    flow = Flow(tmp_path, tmp_path, Shelf(RECIPES), ["lal", "plits"], candidates=["lal"])
    steps = {step.name: step for step in bundle_module.early_steps(flow, tmp_path / "model")}
    flow.mark("bundle-arm").write_text(json.dumps(steps["bundle-arm"].finish()))
    flow.mark("best").write_text('{"arm": "plits"}')
    monkeypatch.setattr(bundle_module, "read_grid", lambda out: None)
    with pytest.raises(PalError, match=r"bundle-arm.json: lal was trained again, and the best arm is plits; delete"):
        steps["bundle"].finish()


@pytest.mark.parametrize(("cores", "jobs", "readers"), [(64, 46, "16"), (16, 10, "4"), (2, 4, None), (64, 1, None)])
def test_the_bundles_sound_is_read_by_a_share_of_the_cores(
    cores: int, jobs: int, readers: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made beside the arms, which an encoder that takes nearly all cores slowed to a third."""
    monkeypatch.setattr(flow_module, "num_cores", lambda: cores)
    flow = Flow(tmp_path, tmp_path, Shelf(RECIPES), jobs=jobs)
    (tmp_path / "rates").mkdir()
    steps = {step.name: step for step in bundle_module.early_steps(flow, tmp_path / "model")}
    (train,), (encode,) = (steps[name].commands() for name in ("bundle-encoder-unified", "frames-bundle-unified"))
    assert [word for word in train if word.startswith("workers=")] == ([f"workers={readers}"] if readers else [])
    assert ("--workers" in encode) is (readers is not None)
    assert readers is None or encode[encode.index("--workers") + 1] == readers


def test_a_model_is_made_where_the_mark_says(tmp_path: Path) -> None:
    flow, model = Flow(tmp_path, tmp_path, Shelf(RECIPES)), tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("a card")
    assert not bundle_module.is_made(flow, model)
    (tmp_path / "marks").mkdir()
    flow.mark("best").write_text(json.dumps({"arm": "lal"}))
    flow.mark("bundle").write_text(json.dumps({"arm": "lal", "bytes": 1, "model": str(model)}))
    assert bundle_module.is_made(flow, model)
    flow.mark("best").write_text(json.dumps({"arm": "pal"}))
    assert not bundle_module.is_made(flow, model), "another arm is the best one since"
    flow.mark("best").write_text(json.dumps({"arm": "lal"}))
    assert not bundle_module.is_made(flow, tmp_path), "another folder"
    with pytest.raises(PalError, match="not empty"):
        bundle_module.check_target(model)


def test_the_scored_model_is_written_as_soon_as_the_best_arm_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def finish(name: str) -> dict[str, Any]:
        done.append(name)
        return {"arm": "lal"} if name == "best" else {}

    names = ("lal-0", "best", "robust-0")
    out, model = tmp_path / "out", tmp_path / "model"

    def steps(flow: Flow) -> list[Step]:
        needs = {"robust-0": ("best",)}
        return [Step(name, "arm", flow.mark(name), needs.get(name, ()), finish=partial(finish, name)) for name in names]

    def write(flow: Flow, grid: object, best: LabRecipe, target: Path, retrained: bool) -> int:
        done.append(f"{target.name} of {best.name}, {retrained}")
        target.mkdir()
        (target / "README.md").write_text("a card")
        return 1

    monkeypatch.setattr(main_module, "grid_steps", steps)
    monkeypatch.setattr(bundle_module, "read_grid", lambda out: None)
    monkeypatch.setattr(bundle_module, "write_model", write)
    words = ["run", "--root", str(tmp_path), "--out", str(out), "--device", "cpu"]
    assert main_module.main([*words, "--as-scored"]) == 2
    assert "--bundle MODEL" in capsys.readouterr().err
    assert main_module.main([*words, "--bundle", str(model), "--as-scored"]) == 0
    assert done == ["lal-0", "best", "model of lal, False", "robust-0"]
    assert main_module.main([*words, "--bundle", str(model), "--as-scored"]) == 0, "it is there"
    assert len(done) == 4


def test_a_signal_in_the_grids_last_step_ends_before_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def last() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # the handler runs in the main thread
        return {}

    monkeypatch.setattr(main_module, "grid_steps", lambda flow: [Step("last", "pace", tmp_path / "last.json", finish=last)])
    monkeypatch.setattr(main_module, "early_steps", lambda *_: [])
    monkeypatch.setattr(main_module, "bundle", lambda *_: pytest.fail("it began"))
    words = [
        "run",
        "--root",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--bundle",
        str(tmp_path / "model"),
    ]
    assert main_module.main(words) == main_module.TIME_IS_UP
    assert main_module.main(["run", *words[1:7]]) == 0, "alone it has ended"


def test_a_tested_world_may_have_every_kind_of_task() -> None:
    assert TASK_KINDS.keys() <= GROUP_OF.keys()
