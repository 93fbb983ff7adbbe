"""benchmarks/lab: the tiny grid end to end, stopped twice; steps that fail; the report's numbers on a planted grid."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.lab.__main__ import main
from benchmarks.lab.analysis import Grid, paired, read_grid
from benchmarks.lab.collecting import FORMAT
from benchmarks.lab.flow import Flow, flow_in
from benchmarks.lab.grid import DIVERGED, grid_steps
from benchmarks.lab.packing import pack
from benchmarks.lab.pictures import draw
from benchmarks.lab.questions import write_tests
from benchmarks.lab.recipes import Shelf
from benchmarks.lab.report import BEGIN, END, blocks, write_report
from benchmarks.lab.steps import Runner, Step

from pal_audio.data import build
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.model.confidence import calibration_of
from pal_audio.training.recipe import load_data
from tests.data.mixing.sets import make_all
from tests.lab_recipes import make_recipes
from tests.lab_sounds import MADE_BY, make_elsewhere

ROOT = Path(__file__).parents[1]


def lab(without_av: Path, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The lab as a process, with its children in a group of its own; none of them has PyAV."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(without_av)])
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.lab", *map(str, words)], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options,
    )  # fmt: skip


def until(found: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if found.is_file():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError(f"{found} never came")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """OUT of a tiny grid that was stopped by its time limit, killed, and gone on with; and when its first marks were written."""
    folder = tmp_path_factory.mktemp("lab")
    out, without_av = folder / "out", folder / "without_av"
    without_av.mkdir()
    (without_av / "sitecustomize.py").write_text('import sys\n\nsys.modules["av"] = None\n')
    blocked = subprocess.run([sys.executable, "-c", "import av"], env={**os.environ, "PYTHONPATH": str(without_av)})
    assert blocked.returncode == 1
    words: list[str | Path] = [
        "run",
        "--tiny",
        "--factors",
        "1",
        "--jobs",
        "2",
        "--root",
        make_all(folder / "data"),
        "--out",
        out,
    ]
    words += ["--recipes", make_recipes(folder / "recipes"), "--elsewhere", make_elsewhere(folder / "sounds"), "--wav"]
    limited = lab(without_av, *words, "--minutes", "0.05")
    told, _ = limited.communicate(timeout=300)
    assert limited.returncode == 3, told
    assert "time is up" in told
    killed = lab(without_av, *words)
    until(out / "marks" / "lab-lm.json", killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    marks = {path.name: path.stat().st_mtime for path in (out / "marks").iterdir()}
    assert "lab-lm.json" in marks
    assert not list((out / "results").glob("*-0.json"))
    last = lab(without_av, *words, "--bundle", folder / "model")
    told, _ = last.communicate(timeout=900)
    assert last.returncode == 0, told
    assert told.count("all steps are done") == 1, "both arms hear by the same encoder, so that one list has the bundle too"
    assert re.search(r"\[\d+/21\] lal-0: \d+ s; ", told), "a line for each step, those of the bundle too"
    assert told.index("frames-bundle-unified:") < told.index("] best:") < told.index("bundle-arm:")
    return out, marks


@pytest.mark.slow
def test_a_grid_that_was_stopped_goes_on(done: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]) -> None:
    out, marks = done
    assert {name: (out / "marks" / name).stat().st_mtime for name in marks} == marks, "nothing was done twice"
    grid = read_grid(out)
    assert grid.arms() == ["plits", "lal"]
    told = grid.results["lal", 0]
    assert told["factor"] == json.loads((out / "rates" / "lal.json").read_text())["factor"]
    assert told["rates"]["answers"]["connector"] == pytest.approx(1e-3 * told["factor"])
    assert 0 < told["parameters"]["trainable"] < told["parameters"]["total"]
    assert told["cost"]["steps"] == 8
    assert told["cost"]["step_s"]["p10"] <= told["cost"]["step_s"]["median"] <= told["cost"]["step_s"]["p90"]
    assert [row["step"] for row in told["curve"]] == [2, 4, 6, 8]
    assert all(row["num"] > 0 for row in told["curve"])
    for name, task in grid.index["tasks"].items():
        assert len(told["tasks"][name]["values"]) == len(task["ids"]) > 0
    assert set(grid.index["tasks"]) == {"sound", "first", "caption", "digits", "sound clips"}
    assert len(told["recipe_hash"]) == len(told["data_hash"]) == 16
    other = grid.elsewhere[0]
    assert (other["arm"], other["made_by"]) == (grid.best, MADE_BY)
    assert [len(task["values"]) for task in other["tasks"].values()] == [4, 2, 4]
    assert [task["num"] for task in other["tasks"]["digits by other voices"]["slices"].values()] == [1, 1]
    assert main(["status", str(out)]) == 0
    assert "nothing left" in capsys.readouterr().out


@pytest.mark.slow
def test_curve_questions_are_not_those_of_scores(done: tuple[Path, dict[str, float]]) -> None:
    ids = {name: set(re.findall(r'"id": ?"([^"]+)"', (done[0] / "tests" / f"{name}.jsonl").read_text()))
           for name in ("curve", "exact", "words")}  # fmt: skip
    assert ids["curve"]
    assert not ids["curve"] & (ids["exact"] | ids["words"])
    held_out = (done[0] / "world" / "test.jsonl").read_text().splitlines()
    assert len(ids["curve"]) + sum(not id.startswith("clip/") for id in ids["exact"] | ids["words"]) == len(held_out)


@pytest.mark.slow
def test_what_is_packed_is_small_and_read_as_the_whole(done: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    out = done[0]
    (said,) = pack(out, tmp_path / "back")
    assert "files" in said
    assert (tmp_path / "back" / "runs" / "lab-lm" / "llm" / "config.json").is_file()
    for name in ("lab-encoder-unified", "bundle-encoder-unified"):
        assert list((tmp_path / "back" / "runs" / name / "encoders").rglob("*.safetensors"))
    assert not [*(tmp_path / "back").rglob("*.flac"), *(tmp_path / "back").rglob("*.ogg")]
    steps = {step.name: step.done for step in grid_steps(flow_in(tmp_path / "back"))}
    assert {name for name, is_done in steps.items() if not is_done} == {"world", "tests", "frames-unified", "conditions"}
    text = write_report(out).read_text()
    assert write_report(tmp_path / "back").read_text() == text
    assert "### Sound from elsewhere, NO GOAL" in text
    assert "| digit by other voices: low | right | 2 |" in text


@pytest.mark.slow
def test_the_bundled_model_is_whole_and_has_its_papers(done: tuple[Path, dict[str, float]]) -> None:
    out = done[0]
    target = out.parent / "model"
    model, _ = load(target)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    worth = calibration_of(model.config)
    assert worth is not None
    assert worth.num_answers == min(300, len((out / "tests" / "exact.jsonl").read_text().splitlines()))
    assert worth.threshold == 1.0, "a model that knows nothing is never sure"
    assert "not trained on" in (out.parent / "model-as-scored" / "README.md").read_text(), "the scored run, which came first"
    text = (target / "ATTRIBUTION.md").read_text()
    assert text.count("https://freesound.org/s/") == 40, "five classes, four folds, two recordings"
    card = (target / "README.md").read_text()
    best = json.loads((out / "marks" / "best.json").read_text())["arm"]
    assert f"`{best}` of the lab" in card
    assert "license: cc-by-sa-4.0" in card
    told = read_grid(out).results[best, 0]["tasks"]["sound"]
    assert f"| sound | right | {told['num']} | {100 * told['score']:.1f}% |" in card
    trained = json.loads((out / "runs" / "bundle-arm" / "recipe.json").read_text())["recipe"]["data"]["train"]
    assert [source["name"] for source in trained] == ["world", "world-dev"]
    assert main(["bundle", str(out), str(target)]) == 2, "a model that is there is kept"


@pytest.mark.slow
def test_a_run_that_was_scored_can_be_the_model_as_it_is(done: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    out, target = done[0], tmp_path / "model"
    assert main(["bundle", str(out), str(target), "--as-scored"]) == 0
    best = json.loads((out / "marks" / "best.json").read_text())["arm"]
    factor = json.loads((out / "rates" / f"{best}.json").read_text())["factor"]
    written, _ = load(target)
    run, _ = load(out / "runs" / f"{best}-x{factor:g}-0" / "final")
    assert torch.equal(written.marker, run.marker.to(torch.bfloat16))
    card, papers = (target / "README.md").read_text(), (target / "ATTRIBUTION.md").read_text()
    assert "not trained on" in card
    assert "folds 1 to 3" in card
    folds = {int(number) // 100 for number in re.findall(r"freesound\.org/s/(\d+)/", papers)}
    assert folds == {1, 2, 3}, "those of fold 4 were not trained on"


def step(name: str, folder: Path, **options: Any) -> Step:
    return Step(name, "kind", folder / f"{name}.json", **options)


def test_a_failed_step_is_named_with_its_log_and_stops_only_those_that_need_it(tmp_path: Path) -> None:
    said: list[str] = []
    bad = step("bad", tmp_path, commands=lambda: [["train", "no-such-recipe"]])
    steps = [
        bad,
        step("lost", tmp_path, needs=("bad",)),
        step("odd", tmp_path, finish=lambda: {}["x"]),
        step("other", tmp_path),
        step("last", tmp_path, follows=("lost", "other")),
    ]
    runner = Runner(steps, tmp_path, jobs=2, say=said.append)
    assert not runner.run()
    assert [item.name for item in steps if item.done] == ["other", "last"]
    text = "\n".join(said)
    assert "failed: bad: `pal train no-such-recipe ...` ended with status 2" in text
    assert "pretrain-lm, quickstart" in text, "the end of its log, which names the recipes that there are"
    assert "not begun: lost, which needs bad" in text
    assert "failed: odd: KeyError: 'x'" in text, "a fault of ours stops no other step either"
    assert "Traceback" in (tmp_path / "logs" / "odd.log").read_text()


DIVERGES = f"pal: error: the loss is nan at step 4; {DIVERGED}"
SAYS = """
import os, signal, sys
print(*sys.argv[2:], sep="\\n", flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("status", "lines", "is_result"),
    [
        ("2", ["step 3", DIVERGES], True),
        ("2", [DIVERGES, "warning: 1 leaked semaphore"], True),
        ("2", ["pal: error: no space is left"], False),
        ("1", [DIVERGES], False),
        ("killed", ["step 3"], False),
    ],
)
def test_a_rate_that_diverges_is_a_result_and_any_other_end_is_not(
    tmp_path: Path, status: str, lines: list[str], is_result: bool
) -> None:
    flow = Flow(tmp_path, tmp_path, Shelf(make_recipes(tmp_path / "recipes")), arms=["lal"], factors=(1.0, 3.0))
    by_name = {step.name: step for step in grid_steps(flow)}
    high = replace(by_name["lal-x3"], needs=(), commands=lambda: [[status, *lines]])
    low, rate = by_name["lal-x1"], by_name["rate-lal"]
    low.mark.parent.mkdir()
    low.mark.write_text(json.dumps({"factor": 1, "held_out": {"right": 0.5}, "loss": {"held_out": 1}, "seconds": 1}))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "lal-x3.log").write_text(f"{DIVERGES}\n")  # of an earlier attempt
    kept = flow.run_folder("lal", 3.0, 0) / "checkpoints-answers"
    kept.mkdir(parents=True)
    said: list[str] = []
    runner = Runner([low, high, rate], tmp_path, say=said.append, program=(sys.executable, "-c", SAYS))
    assert runner.run() == is_result
    assert set(runner.failed) == (set() if is_result else {"lal-x3"})
    chosen = json.loads(rate.mark.read_text())
    assert chosen["factor"] == 1
    assert [row["factor"] for row in chosen["tried"]] == ([1, 3] if is_result else [1])
    assert kept.exists() != is_result, "what diverged keeps no checkpoints"
    if is_result:
        assert json.loads(high.mark.read_text())["diverged"] == DIVERGES
        low.mark.write_text(high.mark.read_text())
        with pytest.raises(PalError, match=r"lal diverged at every factor of its rates \(3, 3\); give lower --factors"):
            rate.finish()
        low.mark.unlink()
        high.mark.unlink()
        with pytest.raises(PalError, match="no run of lal has finished"):
            rate.finish()


def test_scenes_are_composed_as_asked(done: tuple[Path, dict[str, float]]) -> None:
    for world in ("world", "world-dev"):
        assert list((done[0] / world / "audio").rglob("*.wav"))
        assert not list((done[0] / world / "audio").rglob("*.flac"))


def test_products_that_are_gone_are_made_again(tmp_path: Path) -> None:
    made = tmp_path / "made"
    item = step("one", tmp_path, products=(made,), finish=lambda: {"num": made.write_text("x")})
    for _ in range(2):
        assert Runner([item], tmp_path, say=print).run()
        made.unlink()
        assert not item.done


def test_other_settings_and_foreign_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes, out = make_recipes(tmp_path / "recipes"), tmp_path / "out"
    words = ["--root", str(tmp_path), "--out", str(out), "--recipes", str(recipes), "--tiny", "--minutes", "0"]
    assert main(words) == 3
    assert main([*words, "--steps", "5"]) == 2
    assert "was begun with other settings (steps)" in capsys.readouterr().err
    assert main([*words, "--factors", "1,2,3"]) == 2
    assert "was begun with other settings (factors)" in capsys.readouterr().err
    assert main([*words, "--compile"]) == 2
    assert "was begun with other settings (compiled)" in capsys.readouterr().err
    assert main([*words, "--wav"]) == 2
    assert "was begun with other settings (wav)" in capsys.readouterr().err
    told = json.loads((out / "lab.json").read_text())
    del told["fixed"]["wav"]
    (out / "lab.json").write_text(json.dumps(told))
    assert main(["status", str(out)]) == 0
    assert main(words) == 3, "a lab from before there was this setting goes on"
    as_wav = [*words[:2], "--out", str(tmp_path / "wav"), *words[4:]]
    assert main([*as_wav, "--wav"]) == 3
    assert main(as_wav) == 2
    assert "was begun with other settings (wav)" in capsys.readouterr().err
    assert main([*words, "--bundle", str(recipes)]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err
    assert main([*words[:2], "--out", str(recipes), *words[4:]]) == 2
    assert "holds no lab" in capsys.readouterr().err
    (out / "lab.json").write_text('{"fixed": {}, "last": {}}')
    assert main(["status", str(out)]) == 2
    assert "of another version of the lab" in capsys.readouterr().err
    (out / "lab.json").unlink()
    for path in out.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    assert main([*words, "--arms", "plits,nothing"]) == 2
    assert "no recipe" in capsys.readouterr().err


def test_an_arm_is_tried_with_its_like(tmp_path: Path) -> None:
    folder = make_recipes(tmp_path)
    streams = "base: ../arm.yaml\nmodel: {{encoder: null, streams: [{}]}}\n"
    (folder / "arms" / "mixed.yaml").write_text(streams.format("{integration: {type: plits}}, {integration: {type: lal}}"))
    (folder / "arms" / "odd.yaml").write_text(streams.format("{integration: {type: new}}"))
    shelf = Shelf(folder)
    assert [recipe.name for recipe in shelf.arms()] == ["plits", "lal", "mixed", "odd"]
    assert [shelf.recipe(f"arms/{name}").family for name in ("plits", "lal", "mixed")] == ["plits", "lal", "pal"]
    assert shelf.recipe("arms/lal").bases == ["lab-encoder-unified", "lab-lm"]
    with pytest.raises(PalError, match="which of plits, lal, pal, flamingo"):
        _ = shelf.recipe("arms/odd").family


def test_the_rate_of_most_right_answers_is_taken_and_of_equal_ones_that_of_the_lowest_loss(tmp_path: Path) -> None:
    flow = Flow(tmp_path, tmp_path, Shelf(make_recipes(tmp_path / "recipes")), arms=["lal"], factors=(0.5, 1.0, 2.0))
    steps = {step.name: step for step in grid_steps(flow)}
    assert set(steps["rate-lal"].follows) == {"lal-x0.5", "lal-x1", "lal-x2"}
    for factor, right, loss in ((0.5, 0.3, 1.0), (1, 0.4, 0.9), (2, 0.4, 0.8)):
        mark = steps[f"lal-x{factor:g}"].mark
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(json.dumps({"factor": factor, "held_out": {"right": right}, "loss": {"held_out": loss}}))
    assert steps["rate-lal"].finish()["factor"] == 2
    assert [row["factor"] for row in steps["rate-lal"].finish()["tried"]] == [0.5, 1, 2]
    steps["lal-x2"].mark.unlink()
    assert steps["rate-lal"].finish()["factor"] == 1, "a rate that diverged is no reason to stop"


def test_no_more_questions_of_a_task_than_asked_for(tmp_path: Path) -> None:
    recipe = load_data(make_recipes(tmp_path / "recipes") / "world.yaml", [f"data.root={make_all(tmp_path / 'data')}"])
    build(recipe, tmp_path / "world", workers=1)
    whole = write_tests(tmp_path / "world", tmp_path / "all", [tmp_path], 600)["tasks"]
    few = write_tests(tmp_path / "world", tmp_path / "few", [tmp_path], 2)["tasks"]
    assert [len(task["ids"]) for name, task in few.items() if "clips" not in name] == [2, 2, 2, 2]
    assert few["digits"]["ids"] == whole["digits"]["ids"][:2]
    assert few["sound clips"] == whole["sound clips"]
    assert len(whole["sound clips"]["ids"]) == 10
    assert whole["digits"]["slices"]["background 2.5 to 7.5 dB below"] == list(range(len(whole["digits"]["ids"])))


SOURCES = [f"clip {number // 2}" for number in range(400)]


def plant(out: Path, arms: dict[str, list[np.ndarray]], **changes: Any) -> Grid:
    """A grid of hand: sounds right or wrong by arm and seed, and for each arm ten strings with that many errors of 40 words."""
    index = {
        "hash": "abc",
        "tasks": {
            "sound": {"kind": "classify", "group": "general sound", "metric": "accuracy", "best_guess": 0.1, "slices": {},
                      "ids": [str(number) for number in range(400)], "sources": SOURCES},
            "digits": {"kind": "transcribe", "group": "speech", "metric": "errors", "best_guess": None, "slices": {},
                       "ids": [str(number) for number in range(10)], "sources": [str(number) for number in range(10)]},
        },
    }  # fmt: skip
    (out / "results").mkdir(parents=True)
    (out / "results" / "index.json").write_text(json.dumps(index))
    for number, (arm, seeds) in enumerate(arms.items()):
        for seed, right in enumerate(seeds):
            marks = "".join(str(int(item)) for item in right)
            told = {
                "format": FORMAT, "arm": arm, "family": arm, "seed": seed, "ablation": False, "factor": 1.0, "tests_hash": "abc",
                "parameters": {"trainable": 1000 * (number + 1), "total": 9000},
                "cost": {"jobs": 1, "peak_bytes": 2**20 * 100 * (number + 1),
                         "step_s": {"median": 0.1 * (number + 1), "p10": 0.05, "p90": 0.4}},
                "curve": [{"step": 5, "loss": 1.0, "right": 0.5, "num": 9}], "commit": {"commit": "c0ffee"},
                "versions": {"python": "3", "torch": "2", "transformers": "5"},
                "machine": {"device": {"name": "a card", "type": "cuda"}},
                "tasks": {"sound": {"score": float(np.mean(right)), "values": marks, "slices": {}},
                          "digits": {"score": (number + 1) / 40, "values": [[number + 1, 40]] + [[0, 0]] * 9, "slices": {}}},
            }  # fmt: skip
            (out / "results" / f"{arm}-{seed}.json").write_text(json.dumps(told | changes))
    return read_grid(out)


def right_of(num: int, seed: int, of: int = 400) -> np.ndarray:
    """So many right ones, which ones the seed says."""
    return np.random.default_rng(seed).permutation(np.arange(of) < num)


def test_the_report_tells_which_rates_were_tried_and_which_were_taken(tmp_path: Path) -> None:
    def tried(factor: float, right: float, loss: float | None) -> dict[str, Any]:
        return {"factor": factor, "held_out": {"right": right, "num": 390}, "loss": {"held_out": loss}}

    (tmp_path / "rates").mkdir()
    rows = [tried(0.35, 0.861, 0.1051), tried(0.7, 0.867, None), {"factor": 1.4, "diverged": "no numbers"}]
    (tmp_path / "rates" / "lal.json").write_text(json.dumps({"factor": 0.7, "tried": rows}))
    (tmp_path / "rates" / "pal.json").write_text(json.dumps({"factor": 0.7, "tried": rows[1:2], "taken": True}))
    text = "\n".join(blocks(plant(tmp_path, {"lal": [right_of(300, 0)]}), []))
    assert "| lal | 0.35 | 86.1 | 390 | 0.105 |  |" in text
    assert "| lal | 0.7 | 86.7 | 390 |  | chosen |" in text
    assert "| lal | 1.4 | diverged |" in text
    assert "Taken from another lab's sweep: pal." in text
    (tmp_path / "rates" / "foo.json").write_text("{}")
    with pytest.raises(PalError, match=r"foo\.json: no choice of learning rates"):
        read_grid(tmp_path)


def test_a_report_of_ablations_alone_has_no_pictures(tmp_path: Path) -> None:
    assert draw(plant(tmp_path, {"pal-4": [right_of(300, 0)]}, ablation=True), tmp_path) == []


def test_differences_are_those_counted_by_hand(tmp_path: Path) -> None:
    plits = [right_of(300, 0), right_of(304, 1), right_of(308, 2)]
    same = [run.copy() for run in plits]
    for run, more in zip(same, (2, 4, 6), strict=True):
        run[np.flatnonzero(~run)[:more]] = True
    worse = [run & ~right_of(60, 9) for run in plits]
    grid = plant(tmp_path, {"plits": plits, "lal": same, "pal": worse})
    tasks = ["sound"]
    up, down = grid.difference("lal", "plits", tasks), grid.difference("pal", "plits", tasks)
    assert up is not None
    assert down is not None
    assert up.value == pytest.approx((2 + 4 + 6) / 3 / 400)
    assert up.num_sources == 200
    assert up.value in up.interval
    assert (up.non_inferior, up.better) == ("holds", "undecided" if up.interval.low <= 0 else "holds")
    lost = [int(a.sum()) - int(b.sum()) for a, b in zip(plits, worse, strict=True)]
    assert down.value == pytest.approx(-sum(lost) / 3 / 400)
    assert down.value in down.interval
    assert (down.non_inferior, down.better) == ("does not hold", "does not hold")
    errors = grid.difference("lal", "plits", ["digits"])
    assert errors is not None
    assert errors.value == pytest.approx(-1 / 40), "one word more of 40 is worse"
    swapped = grid.difference("plits", "lal", tasks)
    assert swapped is not None
    assert swapped.value == pytest.approx(-up.value)


def test_a_difference_that_seeds_disagree_about_is_undecided(tmp_path: Path) -> None:
    plits = [right_of(300, seed) for seed in range(3)]
    other = [right_of(300 + more, seed) for seed, more in enumerate((-60, 0, 54))]
    found = plant(tmp_path, {"plits": plits, "lal": other}).difference("lal", "plits", ["sound"])
    assert found is not None
    assert found.value == pytest.approx(-2 / 400)
    assert found.non_inferior == "undecided"


def test_one_seed_spreads_over_recordings_alone() -> None:
    one, other = right_of(300, 0).astype(float), right_of(300, 1).astype(float)
    single = paired(one[None], other[None], SOURCES, [0], False)
    thrice = paired(np.stack([one] * 3), np.stack([other] * 3), SOURCES, [0, 1, 2], False)
    width = single.interval.high - single.interval.low
    assert thrice.interval.high - thrice.interval.low == pytest.approx(width, rel=0.1), "equal seeds add no spread"


def test_the_report_says_what_there_is_and_what_is_missing(tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "lab.md"
    plits = [right_of(300, 0), right_of(304, 1), right_of(308, 2)]
    plant(out, {"plits": plits, "lal": [run & ~right_of(200, 9) for run in plits[:2]]})
    elsewhere = json.loads((out / "results" / "lal-1.json").read_text())
    elsewhere["machine"]["device"]["name"] = "another card"
    (out / "results" / "lal-1.json").write_text(json.dumps(elsewhere))
    last = {"arms": ["plits", "lal", "pal"], "seeds": [0, 1, 2]}
    (out / "lab.json").write_text(json.dumps({"fixed": {}, "last": last}))
    with pytest.raises(PalError, match="put the lines"):
        write_report(out, page)
    page.write_text(f"# The lab\nwords\n{BEGIN}\nearlier\n{END}\nmore words\n")
    for _ in range(2):
        assert write_report(out, page) == page
    text = page.read_text()
    assert text.startswith(f"# The lab\nwords\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nmore words\n")
    assert "earlier" not in text
    assert "5 runs on a card (cuda) and another card (cuda) for lal-1, 1 at once" in text
    assert "No result of: lal: seeds 2; pal: seeds 0, 1, 2; the best arm under other conditions." in text
    assert "| plits | 3 | 76.0 (75.0 to 77.0) | 2.5 (2.5 to 2.5) |" in text
    assert "| best constant answer of each task |  | 10.0 |  |" in text
    row = next(line for line in text.splitlines() if "| lal - plits | general sound | 2 |" in line)
    assert "against 75.5" in row
    assert row.endswith("| does not hold |")
    assert "| PAL (16 learned) is as good as PLITS on speech | pal - plits | speech |  |  |  |  | no pair of runs yet |" in text
    assert "| lal | 2,000 | 9,000 | 200 | 2.00 | 200.0 (50.0 to 400.0) | 2.00 |" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"lab-curves.png", "lab-cost.png"}
    assert all(path.stat().st_size < 100_000 for path in tmp_path.glob("*.png"))


def test_a_choice_of_arms_without_plits_is_compared_with_its_variant(tmp_path: Path) -> None:
    """What was never to be run is no claim that lacks its runs."""
    runs = [right_of(300, seed) for seed in range(2)]
    grid = plant(tmp_path, {"plits-multi": runs, "pal-multi": [run & ~right_of(40, 9) for run in runs]})
    for seed in range(2):
        grid.results["plits-multi", seed]["family"] = "plits"
    for settings in (None, {"arms": ["plits-multi", "pal-multi", "lal-multi"], "seeds": [0, 1]}):
        text = "\n".join(blocks(replace(grid, expected=settings and tuple(settings.values())), []))
        assert "### Differences from plits-multi" in text
        assert "| arm minus plits-multi, points |" in text
        assert "| peak MiB | of plits-multi |" in text
        assert "| pal-multi - plits-multi | speech | 2 |" in text
        assert ("| pal-multi - lal-multi | speech |" in text) == (settings is not None)
        assert "| lal - plits |" not in text
    assert grid.baseline() == "plits-multi"
    assert replace(grid, expected=(None, [0, 1])).baseline() == "plits", "its runs are still to come"
    alone = plant(tmp_path / "none", {"lal": runs})
    assert alone.baseline() is None
    assert "No arm of PLITS has a result." in blocks(alone, [])
    assert "None of these arms." in blocks(alone, [])


def test_arms_that_are_named_later_hide_no_result(tmp_path: Path) -> None:
    runs = [right_of(300, seed) for seed in range(2)]
    grid = replace(plant(tmp_path, {"plits": runs, "lal": runs}), expected=(["lal-multi"], [0, 1]))
    text = "\n".join(blocks(grid, []))
    assert "| lal - plits | general sound | 2 |" in text
    assert "| lal | 2 |" in text.split("### Differences from plits")[1]


def test_an_ablation_with_several_seeds_or_that_is_named_is_an_arm(tmp_path: Path) -> None:
    runs = [right_of(300, seed) for seed in range(2)]
    grid = plant(tmp_path, {"plits": runs, "plits-multi": runs[:1], "pal-4": runs[:1]}, ablation=True)
    for told in grid.results.values():
        told["ablation"] = told["arm"] != "plits"
    assert (grid.arms(), grid.arms(ablations=True)) == (["plits"], ["pal-4", "plits-multi"])
    named = replace(grid, expected=(["plits-multi"], [0]))
    assert (named.arms(), named.arms(ablations=True)) == (["plits", "plits-multi"], ["pal-4"])
    grid.results["plits-multi", 1] = grid.results["plits-multi", 0] | {"seed": 1, "ablation": False}
    assert (grid.arms(), grid.arms(ablations=True)) == (["plits", "plits-multi"], ["pal-4"])


def test_results_of_other_questions_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PalError, match="of other questions"):
        plant(tmp_path / "a", {"plits": [right_of(300, 0)]}, tests_hash="other")
    with pytest.raises(PalError, match=r"no tests/index.json here"):
        read_grid(tmp_path)
