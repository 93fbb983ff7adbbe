"""Worker processes change no number of a run, whatever it learns by and however it is stopped; clips are told of as without."""

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from pal_audio import cli, encoders
from pal_audio.data.manifest import read_manifest
from pal_audio.data.prepare import prepare
from pal_audio.data.shard_writing import write_shards
from pal_audio.encoders.conv import ConvEncoder
from pal_audio.errors import PalError
from pal_audio.model import build_model
from pal_audio.training.folder import identity_of
from pal_audio.training.plan import plan_stages
from pal_audio.training.preflight import collator_of
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.tiny import hear_as_on_a_gpu
from tests.training.shrink import write_clips
from tests.training.test_unreadable import spoil, write_examples

ONE_STAGE = "stages=[{{train: {{{train}}}, steps: 5, batch_size: 4, save_every: 2, {more}}}]"
STAGES = {
    "answer": ONE_STAGE.format(train="connector: 1e-3, encoder: 1e-3", more=""),
    "answer, in parts": ONE_STAGE.format(train="connector: 1e-3", more="accumulate: 3"),
    "answer, by budget": ONE_STAGE.format(train="llm: 1e-3", more="batch_audio_s: 6").replace("batch_size: 4, ", ""),
    "tags": ONE_STAGE.format(train="encoder: 1e-3", more="objective: tags, task: classify"),
    "text": ONE_STAGE.format(train="llm: 1e-3", more="objective: text"),
}
KILLED = """
import os, signal, sys
from pathlib import Path
from accelerate import Accelerator
clip, left = Accelerator.clip_grad_norm_, 5
def killed(self, *arguments):
    global left
    left -= 1
    return clip(self, *arguments) if left else os.kill(os.getpid(), signal.SIGKILL)
Accelerator.clip_grad_norm_ = killed
from pal_audio.training.run import train
train(sys.argv[1], ["workers=2"], out=Path(sys.argv[2]))
"""


def losses_of(run: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["loss"], row["gradient_norm"]) for row in rows]


def processes_of(run: Path) -> list[str]:
    """Those whose command or environment names the run's folder, this one excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid() and str(run).encode() in (entry / "environ").read_bytes():
                found.append((entry / "stat").read_text())
        except OSError:
            continue
    return found


def wait_for_the_end(run: Path) -> None:
    until = time.monotonic() + 20
    while processes_of(run) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(run) == []


@pytest.mark.parametrize("stages", STAGES)
def test_the_numbers_are_those_of_no_workers(stages: str, recipe: Path, tmp_path: Path) -> None:
    runs = [train(recipe, [STAGES[stages], f"workers={num}"], tmp_path / str(num)) for num in (0, 2, 4)]
    assert losses_of(runs[0]) == losses_of(runs[1]) == losses_of(runs[2])
    weights = [load_file(next(run.rglob("final/*.safetensors"), run / "llm" / "model.safetensors")) for run in runs]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in weights[0])


def test_cached_frames_have_the_same_numbers_too(recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["stages"] = [{"train": {"connector": 1e-3}, "steps": 5, "batch_size": 4, "save_every": 2}]
    encoder = content["model"]["encoder"]
    weights = {name: tensor.contiguous() for name, tensor in encoders.parse(encoder).build().state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    encoder |= {"checkpoint": str(tmp_path), "frozen": True, "spec_augment": False}
    manifests = [str(write_clips(tmp_path, name, num)) for name, num in (("a", 9), ("t", 2))]
    content["data"] = {"type": "manifests", "train": manifests[:1], "test": manifests[1:]}
    recipe.write_text(json.dumps(content))
    assert cli.main(["encode", *manifests, str(tmp_path / "frames"), "--recipe", str(recipe)]) == 0
    runs = [train(recipe, [f"frame_cache={tmp_path}/frames", f"workers={num}"], tmp_path / str(num)) for num in (0, 1, 2)]
    assert losses_of(runs[0]) == losses_of(runs[1]) == losses_of(runs[2])


@pytest.mark.parametrize("stages", ["answer", "tags"])
def test_an_encoder_that_makes_its_own_features_learns_the_same(
    stages: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done on a GPU: samples come from the workers, and the silence of a muted question too."""
    settings = [STAGES[stages], "precision=float32"]
    made = train(recipe, settings, tmp_path / "made")
    taken: list[int] = []

    def counted(self: ConvEncoder, wav_WS: torch.Tensor, samples_W: list[int]) -> torch.Tensor:
        taken.append(len(wav_WS))
        return mel_of(self, wav_WS, samples_W)

    mel_of = ConvEncoder._mel_of
    monkeypatch.setattr(ConvEncoder, "_mel_of", counted)
    hear_as_on_a_gpu(monkeypatch)
    for num in (0, 2):
        samples = train(recipe, [*settings, f"workers={num}"], tmp_path / str(num))
        assert sum(taken) >= 5 * 4
        taken.clear()
        for one, other in zip(losses_of(made), losses_of(samples), strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def test_a_stream_has_the_same_numbers_too(recipe: Path, tmp_path: Path) -> None:
    write_shards(read_manifest(write_clips(tmp_path, "a", 9)), tmp_path / "a", 20_000)
    write_clips(tmp_path, "t", 2)
    data = f"data={{type: shards, train: [{tmp_path}/a], test: [{tmp_path}/t.jsonl], shuffle_buffer: 8}}"
    runs = [train(recipe, [data, f"workers={num}"], tmp_path / str(num)) for num in (0, 2)]
    assert losses_of(runs[0]) == losses_of(runs[1])


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_process_and_resumes_to_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "RUN": str(run)}
    command = [sys.executable, "-c", KILLED, recipe, run]
    done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_for_the_end(run)
    train(recipe, ["workers=2"], run, resume=True)
    whole = load_file(train(recipe, ["workers=0"], tmp_path / "whole") / "final" / "model.safetensors")
    resumed = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_the_step_and_leaves_none(number: signal.Signals, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--set", "workers=2", "--set", "stages.0.steps=100000", "--set", "stages.0.save_every=100000"]
    # A shell may have started the tests with SIGINT ignored.
    lines = "import signal, sys", "signal.signal(signal.SIGINT, signal.default_int_handler)", "from pal_audio import cli"
    start = "\n".join([*lines, "sys.exit(cli.main())"])
    child = subprocess.Popen(
        [sys.executable, "-c", start, "train", str(recipe), "--out", str(run), *options],
        env={**os.environ, "RUN": str(run)}, start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while time.monotonic() < until and not ((run / "log.jsonl").is_file() and (run / "log.jsonl").read_text().count("\n") > 3):
        time.sleep(0.1)
    os.killpg(child.pid, number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("pal:")]
    assert f"stopped by {number.name} and saved at stage 'first', step" in line
    wait_for_the_end(run)
    found = re.search(r"go on with: pal (.*)", line)
    assert found is not None
    assert "--resume" in shlex.split(found[1])


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    examples = write_examples(tmp_path, "train", 8)
    write_examples(tmp_path, "test", 2)
    spoil(examples[3].audio[0].path)
    data = f"data={{type: manifests, train: [{tmp_path / 'train.jsonl'}], test: [{tmp_path / 'test.jsonl'}]}}"
    return [data, "stages.0.save_every=1", "workers=2"]


def test_a_damaged_clip_is_named_in_one_line(
    recipe: Path, tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    assert cli.main(["train", str(recipe), "--out", str(tmp_path / "run"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pal:")]
    assert re.search(r"train-3\.flac.*--resume --set unreadable_clips=skip", line)


def test_a_damaged_clip_is_left_out(recipe: Path, tmp_path: Path, settings: list[str]) -> None:
    consoles, runs = [], []
    for workers in (0, 2):
        consoles.append(Console(record=True, width=400))
        options = [*settings, "unreadable_clips=skip", f"workers={workers}"]
        with pytest.warns(UserWarning, match=r"train-3.flac.*teaches nothing"):
            runs.append(train(recipe, options, tmp_path / str(workers), console=consoles[-1]))
    assert losses_of(runs[0]) == losses_of(runs[1])
    assert all(console.export_text().count("left out:") == 1 for console in consoles)


def test_what_goes_to_workers_holds_no_module(recipe: Path, tmp_path: Path) -> None:
    for stages in STAGES.values():
        settings = load_recipe(recipe, [stages])
        data = prepare(settings.data, tmp_path / "data")
        model, processor = build_model(settings.model, ["what do you hear first?"], None)
        (planned,) = plan_stages(settings, model, collator_of(processor), data)
        maker = planned.objective.maker(2)
        assert not any(isinstance(value, nn.Module) for value in vars(maker).values())
        assert len(pickle.dumps(maker)) < 300_000
        items = next(planned.batches.from_step(0))
        made, expected = maker.inputs(items), planned.objective.inputs(items)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[key], expected[key]) for key in made)


def test_the_share_of_memory_and_the_number_of_workers(recipe: Path) -> None:
    settings = load_recipe(recipe)
    _, processor = build_model(settings.model, ["what do you hear first?"], None)
    collator = collator_of(processor)
    assert collator.shared_by(4).keep_bytes == collator.keep_bytes // 4
    more = load_recipe(recipe, ["workers=3", "stages.1={train: {llm: 1e-3}, steps: 1, objective: text}"])
    assert [more.num_workers(stage) for stage in more.stages] == [3, 3]
    assert identity_of(more) == identity_of(more.model_copy(update={"workers": 0}))
    with pytest.raises(PalError, match="workers"):
        load_recipe(recipe, ["workers=-1"])


def test_where_no_sound_is_read_there_are_none_by_default(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pal_audio.data.cores.num_cores", lambda: 8)
    text = "stages.1={train: {llm: 1e-3}, steps: 1, objective: text}"
    settings = load_recipe(recipe, [text])
    assert [settings.num_workers(stage) for stage in settings.stages] == [7, 0]
    cached = load_recipe(recipe, ["model.encoder.frozen=true", "stages.1.train={llm: 1e-3}", f"frame_cache={tmp_path}"])
    assert [cached.num_workers(stage) for stage in cached.stages] == [1, 1]  # writes texts as tokens, and gathers frames
    monkeypatch.setattr("pal_audio.data.cores.num_cores", lambda: 2)
    assert [cached.num_workers(stage) for stage in cached.stages] == [0, 0]
