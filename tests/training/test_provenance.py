"""Where a run comes from is written down, and a run goes on over the same data only."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import pal_audio
from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.training import provenance
from pal_audio.training.memory import Device
from pal_audio.training.preflight import plan_run
from pal_audio.training.provenance import commit, describe_run
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.training.shrink import write_clips


def described(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "recipe.json").read_text()))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def manifests(recipe: Path, tmp_path: Path) -> list[str]:
    """Settings that let the tiny recipe read two manifests, and stop after its first stage's second step."""
    paths = [write_clips(tmp_path / "clips", name, 4) for name in ("a", "b")]
    data = {"type": "manifests", "train": [str(paths[0])], "test": [str(paths[1])]}
    return [f"data={json.dumps(data)}", "stages.0.steps=2", "stages.1.steps=1"]


def test_a_run_says_where_it_comes_from(recipe: Path, tmp_path: Path, manifests: list[str]) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", recipe.name)
    git(tmp_path, "commit", "-q", "-m", "a recipe")
    run = train(recipe, manifests, out=tmp_path / "run")
    found = described(run)
    assert found["git"]["recipe"] == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert found["git"]["package"] == commit(Path(pal_audio.__file__))
    assert found["device"]["type"] in ("cpu", "cuda", "mps")
    assert found["device"]["name"]
    assert found["device"]["memory"] > 2**28
    clips = tmp_path / "clips"
    assert found["data"] == {str(clips / f"{name}.jsonl"): sha256(clips / f"{name}.jsonl") for name in ("a", "b")}


def test_composed_scenes_are_known_by_their_mix(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, ["stages.0.steps=1", "stages.1.steps=1"], out=tmp_path / "run")
    names = ("mix.json", "train.jsonl", "test.jsonl")
    assert described(run)["data"] == {f"data/{name}": sha256(run / "data" / name) for name in names}


def test_a_mix_is_known_by_its_manifests_too(recipe: Path, tmp_path: Path) -> None:
    mix = {"type": "mix", "sources": [{"type": "procedural"}], "tasks": {"classify": 1}, "num_train": 4, "num_test": 2}
    settings = [f"data={json.dumps(mix)}", "stages.0.steps=1", "stages.1.steps=1"]
    run = train(recipe, settings, out=tmp_path / "run")
    names = ("mix.json", "train.jsonl", "test.jsonl")
    assert described(run)["data"] == {f"data/{name}": sha256(run / "data" / name) for name in names}
    many = ["data.num_train=1000", "stages.0.steps=null", "stages.0.epochs=2"]
    plan = plan_run(recipe, [*settings, *many], out=tmp_path / "run")
    assert (plan.num_train, plan.stages[0].num_steps) == (1000, 500)


def test_commits_are_clean_dirty_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\n")
    assert commit(file) is None
    git(tmp_path, "init", "-q")
    assert commit(file) is None, "a repository without a commit"
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "nothing")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(file) == {"commit": head, "dirty": True}, "the file is in no commit"
    git(tmp_path, "add", "a.yaml")
    git(tmp_path, "commit", "-q", "-m", "a")
    (tmp_path / "log.txt").write_text("what a run writes beside its recipe")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(file) == {"commit": head, "dirty": False}
    file.write_text("a: 2\n")
    assert commit(file) == {"commit": head, "dirty": True}


def test_without_git_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(Path(pal_audio.__file__)) is None


def test_a_manifest_that_changed_is_refused_on_resume(
    recipe: Path, tmp_path: Path, manifests: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(recipe, manifests, out=tmp_path / "run")
    (run / "finished.json").unlink()
    manifest = tmp_path / "clips" / "a.jsonl"
    kept = manifest.read_bytes()
    manifest.write_bytes(kept.replace(b"a bell", b"a gong"))
    command = ["train", str(recipe), "--out", str(run), *(word for setting in manifests for word in ("--set", setting))]
    assert cli.main([*command, "--resume"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pal: error")]
    assert f"{manifest} is not what {run} was begun with" in line
    manifest.write_bytes(kept)
    assert cli.main([*command, "--resume"]) == 0


def test_scenes_that_changed_are_refused_on_resume(recipe: Path, tmp_path: Path) -> None:
    settings = ["stages.0.steps=1", "stages.1.steps=1"]
    run = train(recipe, settings, out=tmp_path / "run")
    (run / "finished.json").unlink()
    manifest = run / "data" / "train.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(PalError, match=r"data/train.jsonl is not what"):
        train(recipe, settings, out=run, resume=True)


def test_another_machine_is_noted_and_the_first_stays(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = Device("cpu", "one", 1), Device("cuda", "another", 2)
    for device in (cpu, cpu, gpu, gpu):
        describe_run(tmp_path, load_recipe(recipe), recipe, "x", device)
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "9"})
    describe_run(tmp_path, load_recipe(recipe), recipe, "x", gpu)
    found = described(tmp_path)
    assert found["device"]["name"] == "one"
    assert [(item["device"]["name"], item["versions"] == {"torch": "9"}) for item in found["resumed"]] == [
        ("another", False),
        ("another", True),
    ]
