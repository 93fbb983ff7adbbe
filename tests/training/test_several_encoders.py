"""Whisper, SSLAM and CLAP in one model, from published-like folders: trained live and from a frame cache, resumed, asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pal_audio import cli, encoders
from pal_audio.model import load
from pal_audio.training import run as run_module
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.encoders.cases import CASES
from tests.training.objectives.made import losses
from tests.training.shrink import overrides, tiny_llm, write_clips

ROLES = {"speech": "whisper", "sound": "sslam", "language": "clap"}
RECIPES = Path(__file__).parents[2] / "recipes"
PRESETS: dict[str, dict[str, Any]] = {
    "pal-multi": {"preset": "pal-multi", "connector": {"type": "mlp", "stride": 4}},
    "lfst": {"preset": "lfst", "connector": {"type": "lfst", "queries": 4}},
    "lfst by lal": {"preset": "lfst", "connector": {"type": "lfst", "queries": 4}, "lal": {}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Encoders saved as their published folders are, by role."""
    root, saved = tmp_path_factory.mktemp("encoders"), {}
    for role, name in ROLES.items():
        torch.manual_seed(len(saved))
        encoders.parse(CASES[name]).build().save_checkpoint(root / role)
        saved[role] = str(root / role)
    return saved


def recipe(folder: Path, preset: str, folders: dict[str, str], frozen: bool = True, **more: Any) -> Path:
    chosen = [role for role in ROLES if preset == "pal-multi" or role != "speech"]
    parts = {"connector": 1e-3, "llm": 1e-3} | ({} if preset == "lfst" else {"projector": 1e-3})
    content = {
        "name": "several",
        "model": {
            "llm": tiny_llm("meta-llama/"),
            "encoders": {role: {"type": ROLES[role], "checkpoint": folders[role], "frozen": frozen} for role in chosen},
            **PRESETS[preset],
        },
        "data": {
            "type": "manifests",
            "train": [{"path": str(write_clips(folder, "train", 6))}],
            "test": [str(write_clips(folder, "test", 2))],
        },
        "stages": [{"train": parts if frozen else parts | {"encoder": 1e-3}, "steps": 4, "batch_size": 3, "save_every": 1}],
        **more,
    }
    (folder / "several.yaml").write_text(yaml.safe_dump(content))
    return folder / "several.yaml"


@pytest.mark.parametrize("preset", list(PRESETS))
def test_training_from_a_frame_cache_equals_training_live(
    preset: str, folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`pal encode` stores the frames of all encoders that the recipe names (the held-out clips are among those of training)."""
    path = recipe(tmp_path, preset, folders)
    manifests = [str(tmp_path / f"{name}.jsonl") for name in ("train", "test")]
    num_encoders = 3 if preset == "pal-multi" else 2
    assert cli.main(["encode", *manifests, str(tmp_path / "frames"), "--recipe", str(path), "--verify", "3"]) == 0
    assert f"{6 * num_encoders} new entries" in capsys.readouterr().err
    live, cached = (
        train(path, out=tmp_path / "live"),
        train(path, [f"frame_cache={tmp_path / 'frames'}"], out=tmp_path / "cached"),
    )
    assert losses(cached) == pytest.approx(losses(live), abs=1e-5)
    weights = [load_file(run / "final" / "model.safetensors") for run in (live, cached)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)
    assert (live / "answers.jsonl").read_text() == (cached / "answers.jsonl").read_text()


WAYS = {
    "pal-multi": ["accumulate=3", "packing=false", "checkpointing=true", "recompute_audio=true"],
    "lfst by lal": ["accumulate=3", "checkpointing=true", "compile=true"],
}


@pytest.mark.parametrize("preset", list(WAYS))
def test_the_way_of_a_step_keeps_the_numbers(
    preset: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original, compiled = recipe(tmp_path, preset, folders), torch.compile, []

    def without_kernels(*arguments: Any, **options: Any) -> Any:
        compiled.append(1)
        return original(*arguments, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", without_kernels)
    plain = train(path, ["stages.0.steps=2"], out=tmp_path / "plain")
    other = train(path, ["stages.0.steps=2", *(f"stages.0.{setting}" for setting in WAYS[preset])], out=tmp_path / "other")
    assert losses(other) == pytest.approx(losses(plain), rel=1e-5)
    assert bool(compiled) == ("compile=true" in WAYS[preset])


def test_a_cache_that_lacks_one_encoder_is_refused_before_anything_trains(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "pal-multi", folders)
    manifest, frames = str(tmp_path / "train.jsonl"), str(tmp_path / "frames")
    for name in ("speech", "sound"):
        assert cli.main(["encode", manifest, frames, "--recipe", str(path), "--encoder", name]) == 0
    capsys.readouterr()
    assert cli.main(["train", str(path), "--set", f"frame_cache={frames}", "--out", str(tmp_path / "run")]) == 2
    assert "made by an encoder of another configuration than 'language'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_encoders_that_train_resume_to_the_same_weights(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, "pal-multi", folders, frozen=False)
    whole = train(path, out=tmp_path / "whole")

    def cut(*arguments: Any) -> None:
        if arguments[-1].step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "_report", cut)
        with pytest.raises(KeyboardInterrupt):
            train(path, out=tmp_path / "cut")
    resumed = train(path, out=tmp_path / "cut", resume=True)
    one, other = (load_file(run / "final" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    before = {role: encoders.parse({"type": ROLES[role], "checkpoint": folder}).build() for role, folder in folders.items()}
    for role, encoder in before.items():
        trained = [not torch.equal(one[f"encoders.{role}.{name}"], tensor) for name, tensor in encoder.named_parameters()]
        assert any(trained), role


def test_trained_parts_alone_are_saved_and_the_encoders_come_from_their_folders(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(recipe(tmp_path, "pal-multi", folders), out=tmp_path / "whole")
    parts = train(recipe(tmp_path, "pal-multi", folders, save="trained"), out=tmp_path / "parts")
    (one, _), (other, _) = load(whole / "final"), load(parts / "final")
    held = load_file(parts / "final" / "model.safetensors")
    assert not [name for name, _ in one.encoders.named_parameters() if f"encoders.{name}" in held]
    assert one.audio_fingerprint() == other.audio_fingerprint()
    assert cli.main(["info", str(parts), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(item["encoder"], item["integration"]["type"]) for item in shown["streams"]] == [
        ("speech", "plits"), ("sound", "lal"), ("language", "lal"),
    ]  # fmt: skip
    assert {f"encoder {role}" for role in ROLES} <= set(shown["parameters"])
    assert set(shown["folder"]["bases"]["encoders"]) == set(ROLES)


def test_the_line_of_the_shipped_lfst_recipe_makes_it_enter_by_lal(tmp_path: Path) -> None:
    path = RECIPES / "curriculum-llama-3.2-1b-lfst.yaml"
    by_lal = ["model.lal={}", *(f"stages.{n}.train.projector=1e-3" for n in range(3))]
    assert f"--set {by_lal[0]}" in path.read_text()
    assert f"--set {by_lal[1]}" in path.read_text()
    run = train(path, [*overrides(path, tmp_path / "data", 1), *by_lal], out=tmp_path / "run")
    (stream,) = load(run / "final")[0].config.audio.streams
    assert (stream.encoders, stream.connector.type, stream.integration.type) == (("language", "sound"), "lfst", "lal")
    (stream,) = load_recipe(path, overrides(path, tmp_path / "data")).model.audio_config().streams
    assert stream.integration.type == "plits"
