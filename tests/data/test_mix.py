"""The folder of a recipe's data: same bytes however made, reused when whole, refused when another's, remade after a kill."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from pydantic import ValidationError

from pal_audio.data import DataConfig, build, check_manifest, mix, read_manifest, read_mix
from pal_audio.data.scenes import scene
from pal_audio.errors import PalError

from .importers.test_recordings import AT_HAND, make_digits, make_esc, needs_recordings

CONFIG = DataConfig(seed=3, num_train=230, num_test=60, seconds=2.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder, made in this process."""
    out = tmp_path_factory.mktemp("mix") / "deep" / "out"
    build(CONFIG, out, workers=1)
    return out


def test_folder_holds_what_its_config_says(built: Path) -> None:
    for split, num in (("train", 230), ("test", 60)):
        examples = read_manifest(built / f"{split}.jsonl")
        assert check_manifest(built / f"{split}.jsonl") == []
        assert len(examples) == num
        for index in (0, num - 1):
            item = scene(3, split, index, CONFIG.scene_settings())
            assert (examples[index].task, examples[index].question, examples[index].answer) == (
                item.task,
                item.question,
                item.answer,
            )
            info = soundfile.info(examples[index].audio[0].path)
            assert (info.samplerate, info.frames, info.subtype, info.format) == (16000, 32000, "PCM_16", "FLAC")
            wav_S, _ = soundfile.read(examples[index].audio[0].path, dtype="float32")
            assert abs(wav_S - item.wav_S).max() < 1 / 32768
            assert [event["kind"] for event in examples[index].meta["events"]] == [event.kind for event in item.events]
    noted = read_mix(built)
    assert noted.config == CONFIG
    assert {split: sum(counts.values()) for split, counts in noted.num_examples.items()} == {"train": 230, "test": 60}
    assert 0.05 < noted.chance < 0.25
    assert not (built / "mix.partial.json").exists()


def test_processes_change_no_byte(built: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build(CONFIG, tmp_path / "out", lambda done, total: seen.append((done, total)), workers=2)
    assert contents(tmp_path / "out") == contents(built)
    assert seen[-1] == (290, 290)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_finished_folder_is_reused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix, "_composed", None)
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert build(CONFIG.model_copy(), built) == (built / "train.jsonl", built / "test.jsonl")
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_other_folders_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(PalError, match=r"another config \(seed, num_test differ\)"):
        build(CONFIG.model_copy(update={"seed": 4, "num_test": 61}), built)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PalError, match="not empty and holds no mix"):
        build(CONFIG, tmp_path)
    with pytest.raises(PalError, match="not a folder"):
        build(CONFIG, tmp_path / "mine.txt")
    (tmp_path / "mix.json").write_text('{"format": 0, "config": {}}')
    with pytest.raises(PalError, match="another version"):
        build(CONFIG, tmp_path)
    (tmp_path / "mix.json").write_text("[")
    with pytest.raises(PalError, match="cannot be read"):
        build(CONFIG, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "mix.json"]


def test_a_folder_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    config = DataConfig(num_train=3, num_test=2, seconds=2)
    build(config, tmp_path)
    whole = contents(tmp_path)
    (tmp_path / "audio/train/000001.flac").unlink()
    build(config, tmp_path)
    assert contents(tmp_path) == whole


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    config = DataConfig(num_train=60, num_test=2, seconds=2)

    def second_writer(done: int, total: int) -> None:
        with pytest.raises(PalError, match="being written by another process"):
            build(config, tmp_path)

    build(config, tmp_path, second_writer)
    read_mix(tmp_path)


KILLED = """
import multiprocessing, pathlib, sys
from pal_audio.data import DataConfig, build
def tell(done, total):
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if __name__ == "__main__":
    build(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2], tell)
"""


def test_a_kill_leaves_no_process_and_is_made_good(built: Path, tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text(KILLED)
    out = tmp_path / "out"
    command = [sys.executable, str(tmp_path / "make.py"), CONFIG.model_dump_json(), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    assert not (out / "mix.json").exists()
    with pytest.raises(PalError, match="no finished mix"):
        read_mix(out)
    if sys.platform == "linux":
        deadline = time.monotonic() + 10
        while any(_runs(pid) for pid in workers):
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.05)
    with pytest.raises(PalError, match="another config"):
        build(CONFIG.model_copy(update={"seed": 4}), out)
    build(CONFIG, out)
    assert contents(out) == contents(built)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_recordings_take_the_place_of_scenes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    make_esc(root / "esc50", num_per_fold=4)
    make_digits(root / "fsdd")
    config = DataConfig(root=root, num_train=100, num_test=20)
    train_path, test_path = build(config, tmp_path / "out")
    train, test = (read_manifest(path, config.roots) for path in (train_path, test_path))
    assert Counter(example.task for example in train) == {"esc10": 50, "digits": 50}
    assert Counter(example.task for example in test) == {"esc10": 8, "digits": 10}  # fold 4 has no more
    assert len({example.audio[0].path for example in test}) == 18
    assert not {e.audio[0].path for e in train} & {e.audio[0].path for e in test}
    answers = Counter(example.answer for example in train if example.task == "digits")
    assert set(answers.values()) == {5}
    questions = Counter((example.question, example.answer) for example in train if example.task == "esc10")
    assert len(questions) == 8
    assert max(questions.values()) - min(questions.values()) <= 2
    assert not (tmp_path / "out" / "audio").exists()
    assert check_manifest(test_path, config.roots) == []
    before = train_path.stat().st_mtime_ns
    build(config, tmp_path / "out")
    assert train_path.stat().st_mtime_ns == before


def test_root_without_the_recordings_is_an_error_before_anything_is_written_over(tmp_path: Path) -> None:
    make_digits(tmp_path / "data" / "fsdd")
    with pytest.raises(PalError, match="no ESC-50 layout"):
        build(DataConfig(root=tmp_path / "data"), tmp_path / "out")
    build(DataConfig(root=tmp_path / "data", tasks={"digits": 1}, num_test=5), tmp_path / "out2")


def test_settings_without_effect_are_said(tmp_path: Path) -> None:
    make_digits(tmp_path / "data")
    config = DataConfig(root=tmp_path / "data", tasks={"digits": 1}, seconds=4)
    with pytest.warns(UserWarning, match="no effect: seconds"):
        build(config, tmp_path / "out")


@needs_recordings
def test_recordings_at_hand(tmp_path: Path) -> None:
    config = DataConfig(root=AT_HAND)
    paths = build(config, tmp_path / "out")
    train, test = (read_manifest(path, config.roots) for path in paths)
    assert Counter(example.task for example in train) == {"esc10": 2000, "digits": 2000}
    assert Counter(example.task for example in test) == {"esc10": 80, "digits": 150}
    assert read_mix(tmp_path / "out").chance <= 0.12


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sead": 1}, "did you mean 'seed'"),
        ({"tasks": {"digits": 1}}, "names none of scenes"),
        ({"tasks": {"count": 1}, "root": "."}, "names none of recordings: esc10, esc50, digits"),
        ({"tasks": {"digit": 1}}, "unknown task 'digit'"),
        ({"tasks": {"count": -1}}, "must be positive"),
        ({"num_train": 0}, "num_train"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_configs_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig(**given)
