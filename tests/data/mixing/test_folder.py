"""The folder of a mix, by the library and by `pal data mix`: same bytes however made, and one line where it cannot be."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from pal_audio import cli
from pal_audio.data import build, check_manifest, prepare, read_manifest, read_mix, scene_files
from pal_audio.data.mixing.tasks import TASK_KINDS
from pal_audio.data.mixing.telling import as_text
from pal_audio.errors import PalError
from pal_audio.training.recipe import load_data, load_recipe

from ..importers.test_recordings import AT_HAND, needs_recordings
from ..test_mix import contents
from .sets import make_all, mix

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "recipes" / "mix-sounds-digits-notes.yaml"
SCENE: dict[str, Any] = {
    "seconds": 4,
    "num_events": [1, 2],
    "overlap": {},
    "reverb": {"chance": 0.5},
    "background": {"sound": "pink"},
}
TASKS: dict[str, Any] = {"caption": 1, "first": 1, "transcribe": {"scene": {"num_digits": [1, 3]}}, "pitch": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


def test_workers_change_no_byte_and_more_items_no_earlier_one(root: Path, tmp_path: Path) -> None:
    config = mix(root, tasks=TASKS, scene=SCENE, num_train=210, num_test=60)
    build(config, tmp_path / "one", workers=1)
    seen: list[tuple[int, int]] = []
    build(config, tmp_path / "two", lambda *done: seen.append(done), workers=2)
    assert seen[-1] == (270, 270)
    whole = contents(tmp_path / "one")
    assert whole == contents(tmp_path / "two")
    build(config.model_copy(update={"num_train": 30, "num_test": 5}), tmp_path / "few", workers=1)
    few = contents(tmp_path / "few")
    for split, num in (("train", 30), ("test", 5)):
        assert few[f"{split}.jsonl"] == b"".join(whole[f"{split}.jsonl"].splitlines(keepends=True)[:num])
        sounds = [name for name in few if name.startswith(f"audio/{split}/")]
        assert len(sounds) == num
        assert all(few[name] == whole[name] for name in sounds)


def test_what_the_folder_holds(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_files, "SHARD", 8)
    config = mix(root, tasks=TASKS, scene=SCENE, num_train=20, num_test=12)
    paths = build(config, tmp_path / "out", workers=1)
    assert all(check_manifest(path) == [] for path in paths)
    train = read_manifest(paths[0])
    assert Counter(Path(example.audio[0].path).parent.name for example in train) == {"000": 8, "001": 8, "002": 4}
    for example in train:
        info = soundfile.info(example.audio[0].path)
        assert (info.samplerate, info.format, info.subtype, info.channels) == (16000, "FLAC", "PCM_16", 1)
        assert info.duration == example.meta["seconds"]
    noted = read_mix(tmp_path / "out")
    assert noted.config == config.resolved()
    assert sum(noted.num_examples["train"].values()) == 20
    clips = json.loads((tmp_path / "out" / "clips.json").read_text())
    used = {event["clip"] for example in train for event in example.meta["events"]}
    assert used <= set(clips["train"])
    assert not set(clips["train"]) & set(clips["test"])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    build(config, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before, "a whole folder is taken as it is"
    with pytest.raises(PalError, match=r"another config \(tasks differ\)"):
        build(mix(root, tasks={"caption": 1}, scene=SCENE, num_train=20, num_test=12), tmp_path / "out")
    Path(train[0].audio[0].path).unlink()
    build(config, tmp_path / "out", workers=1)
    assert Path(train[0].audio[0].path).is_file()


def test_training_gets_a_mix_as_it_gets_scenes(root: Path, tmp_path: Path) -> None:
    data = prepare(mix(root, num_train=6, num_test=5, scene={"seconds": 3, "num_events": 1}), tmp_path / "out")
    assert (list(data.sources), len(data.train()), len(data.test)) == (["scenes"], 6, 5)
    assert set(data.chance_by_task) == {"classify"}


def shipped_settings(root: Path, num_train: int, num_test: int) -> list[str]:
    return [f"data.root={root}", f"data.num_train={num_train}", f"data.num_test={num_test}"]


def test_the_shipped_recipe_by_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    settings = [word for setting in shipped_settings(root, 100, 100) for word in ("--set", setting)]
    assert cli.main(["data", "mix", "mix-sounds-digits-notes", str(out), *settings, "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{out}/train.jsonl\n{out}/test.jsonl\n"
    assert cli.main(["data", "check", str(out / "train.jsonl")]) == 0
    asked = {example.task for example in read_manifest(out / "train.jsonl")}
    config = load_data(SHIPPED, shipped_settings(root, 100, 100))
    assert asked == set(config.tasks)  # type: ignore[union-attr]
    assert {task.kind for task in config.tasks.values()} == set(TASK_KINDS) - {"higher"}, "a part of `pitch`"  # type: ignore[union-attr]


def test_a_recipe_that_says_data_alone(root: Path, tmp_path: Path) -> None:
    with pytest.raises(PalError, match="says data alone: compose it by `pal data mix`, or take it as another recipe's `base`"):
        load_recipe(SHIPPED)
    training = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    own = {"base": SHIPPED.name, "name": "own"} | {key: training[key] for key in ("model", "stages")}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    settings = shipped_settings(root, 5, 5)
    assert (
        load_recipe(tmp_path / "own.yaml", settings).data
        == load_data(SHIPPED, settings)
        == load_data(tmp_path / "own.yaml", settings)
    )


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "mix", "--list-tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TASK_KINDS)
    assert all(question in line and answer in line for line, (question, answer) in zip(lines, _examples(), strict=True))


def _examples() -> list[tuple[str, str]]:
    return [kind.example for kind in TASK_KINDS.values()]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.root=none", "data.sources[0].root: no such folder"),
        ("data.sources.0.labels=[dog, cat]", "no clip has the label 'cat'"),
        ("data.scene.seconds=3", "4 events of 0.6 s"),
        ("data.tasks.behind.senne={}", "did you mean 'scene'?"),
        ("data.tasks.pitch.scene.interval=50", "data.tasks.pitch: label 'bass guitar' has no two train notes"),
        ("data.sources.1.hold_out={speaker: [theo, lucas, yweweler]}", "no train clip for label 'eight' of category 'digit'"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    settings = ["--set", f"data.root={root}", "--set", setting]
    assert cli.main(["data", "mix", str(SHIPPED), str(tmp_path / "out"), *settings]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pal: error")]
    assert len(said) == 1
    assert words in said[0]
    assert not (tmp_path / "out").exists(), "nothing is begun"


@needs_recordings
def test_recordings_at_hand(tmp_path: Path) -> None:
    config = load_data(SHIPPED, shipped_settings(AT_HAND, 60, 40))
    paths = build(config, tmp_path / "out", workers=1)
    train, test = (read_manifest(path) for path in paths)
    clips = json.loads((tmp_path / "out" / "clips.json").read_text())
    assert (len(clips["train"]), len(clips["test"])) == (240 + 2000 + 384, 80 + 300 + 96)
    used = [{event["clip"] for example in part for event in example.meta["events"]} for part in (train, test)]
    assert not used[0] & used[1]
    assert not any("_theo_" in clip for clip in clips["train"])


def test_a_mix_told_as_text_is_that_of_the_same_sound(root: Path, tmp_path: Path) -> None:
    tasks = {**TASKS, "background": {"scene": {"background": {"sound": "sound"}}}}
    config = mix(root, tasks=tasks, scene=SCENE, num_train=40, num_test=20)
    told = config.model_copy(update={"text_only": True})
    heard_in, told_in = build(config, tmp_path / "heard", workers=1), build(told, tmp_path / "told", workers=2)
    for with_sound, without in zip(heard_in, told_in, strict=True):
        heard, read = read_manifest(with_sound), read_manifest(without)
        assert [as_text(one) for one in heard] == [one.model_copy(update={"meta": heard[at].meta}) for at, one in enumerate(read)]
        for one, other in zip(heard, read, strict=True):
            assert not other.audio
            assert other.meta["events"] == one.meta["events"]
            assert other.meta.get("background") == one.meta.get("background")
    assert not (tmp_path / "told" / "audio").exists()
    before = contents(tmp_path / "told")
    assert build(told, tmp_path / "told") == told_in, "a finished folder is taken as it is"
    assert contents(tmp_path / "told") == before
    with pytest.raises(PalError, match="text_only differ"):
        build(config, tmp_path / "told")


def test_wav_files_hold_the_same_samples(root: Path, tmp_path: Path) -> None:
    config = mix(root, tasks=TASKS, scene=SCENE, num_train=6, num_test=3)
    as_wav = config.model_copy(update={"audio_format": "wav"})
    for one, other in zip(build(config, tmp_path / "flac", workers=1), build(as_wav, tmp_path / "wav", workers=2), strict=True):
        for flac, wav in zip(read_manifest(one), read_manifest(other), strict=True):
            assert (Path(flac.audio[0].path).suffix, Path(wav.audio[0].path).suffix) == (".flac", ".wav")
            assert soundfile.info(wav.audio[0].path).subtype == "PCM_16"
            np.testing.assert_array_equal(*(soundfile.read(item.audio[0].path, dtype="int16")[0] for item in (flac, wav)))
            assert (flac.question, flac.answer, flac.meta) == (wav.question, wav.answer, wav.meta)
    before = contents(tmp_path / "wav")
    build(as_wav, tmp_path / "wav")
    assert contents(tmp_path / "wav") == before, "a finished folder is taken as it is"
    with pytest.raises(PalError, match="audio_format differ"):
        build(config, tmp_path / "wav")
    next((tmp_path / "wav").rglob("*.wav")).unlink()
    build(as_wav, tmp_path / "wav")
    assert contents(tmp_path / "wav").keys() == before.keys(), "a folder that lost a file is made again"


def test_a_folder_from_before_there_were_some_keys_is_taken(root: Path, tmp_path: Path) -> None:
    config = mix(root, tasks=TASKS, scene=SCENE, num_train=4, num_test=2, augment={"tilt": {"chance": 0.5}})
    build(config, tmp_path / "mix", workers=1)
    mark = tmp_path / "mix" / "mix.json"
    described = json.loads(mark.read_text())
    assert described["config"].pop("text_only") is False
    assert described["config"].pop("audio_format") == "flac"
    assert described["config"]["augment"].pop("filter", 0) is None
    assert described["config"]["augment"]["tilt"].pop("categories", 0) is None
    mark.write_text(json.dumps(described))
    before = contents(tmp_path / "mix")
    build(config, tmp_path / "mix", workers=1)
    assert contents(tmp_path / "mix") == before
