"""Two processes compute what one does, and stop, die and go on together. DDP and FSDP2, on the CPU by gloo.

Each test starts its processes once, with many cases in them, and ends them at a deadline. They find each other by a file, not
by a port: a port that was found free may be taken before it is used.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, read_manifest, write_manifest
from pal_audio.errors import PalError
from pal_audio.training import processes
from pal_audio.training.processes import Processes
from pal_audio.training.run import train
from tests.tiny import RATE_HZ, noise
from tests.training.processes_worker import PARALLEL, TASKS, cases, compute
from tests.training.shrink import write_clips

ROOT = Path(__file__).parents[2]
LAUNCHER = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DEADLINE_S = 240
# Two processes add in another order than one; then Adam divides by the root of what it has seen. The key part of an attention's
# bias has no gradient but rounding (softmax does not see it), so Adam moves it by rounding alone.
LOSS, WEIGHTS, KEY_BIAS = 5e-6, 2e-5, 2e-3  # a step moves a weight by up to 1e-3
LOSS_BFLOAT16 = 2e-2
RECIPE = """
name: tiny
model:
  preset: pal
  encoder: {{type: conv, num_mels: 16, channels: [4, 8], time_strides: [4, 2], hidden_size: 16, num_layers: 1, num_heads: 2,
             dropout: 0.0, spec_augment: false}}
  summary: {{type: pool, num_tokens: 2}}
  llm: {{model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
         num_key_value_heads: 2, max_position_embeddings: 512, tokenizer: {{vocab_size: 300}}}}
data: {{type: manifests, train: [{train}], test: [{test}]}}
stages:
  - {{name: first, train: {{connector: 1e-3, projector: 1e-3, llm: 1e-3}}, steps: 6, batch_size: 3, save_every: 2,
     eval_every: 3, eval_examples: 4, eval_samples: 2}}
  - {{name: second, train: {{encoder: 1e-3}}, steps: 4, batch_size: 3, save_every: 3, eval_every: 4,
     eval_examples: 3, eval_samples: 0, keep: best}}
"""


WORKER = "tests.training.processes_worker"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def start(job: str, folder: Path) -> list[tuple[int, str]]:
    """Run a job of the worker in two processes; exit status and stderr of each."""
    commands = [[WORKER, job, str(folder), str(rank), "2", str(folder / f"rendezvous-{job}")] for rank in range(2)]
    return run_all(commands, folder / job)


def run_all(commands: list[list[str]], log: Path) -> list[tuple[int, str]]:
    """Run modules side by side to their end, or to the deadline."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    logs = [log.with_suffix(f".{number}.err") for number in range(len(commands))]
    started = []
    try:
        for path, command in zip(logs, commands, strict=True):
            with path.open("w") as errors:
                started.append(subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stderr=errors))
        statuses = [process.wait(DEADLINE_S) for process in started]
    finally:
        for process in started:
            process.terminate()  # a launcher then ends its own
            process.wait(60)
    return [(status, path.read_text()) for status, path in zip(statuses, logs, strict=True)]


def write_examples(folder: Path) -> list[Example]:
    """Sound, text, sound, text, ...; answers of unlike length, so that examples weigh unlike."""
    examples = []
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", noise(0.5 + 0.2 * number, number), RATE_HZ)
        asked = Message(role="user", content=[AudioPart(path=f"{number}.wav"), TextPart(text="what sound is this?")])
        answer = Message(role="assistant", content="a dog barks twice"[: 5 + 4 * number])
        examples.append(Example(id=f"sound-{number}", messages=[asked, answer]))
        asked = Message(role="user", content="how many sounds come before the siren?")
        examples.append(
            Example(id=f"text-{number}", messages=[asked, Message(role="assistant", content="a bell " * (number + 1))])
        )
    write_manifest(folder / "examples.jsonl", examples)
    return read_manifest(folder / "examples.jsonl")


def assert_like(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], where: str) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        tolerance = KEY_BIAS if name.endswith((".qkv.bias", ".kv_proj.bias")) else WEIGHTS
        difference = float((tensor - theirs[name]).abs().max())
        assert difference <= tolerance, f"{where}: {name} differs by {difference}"


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Losses, gradient norms, weights and moments, with sound in one process, in the other, in both and in none."""
    examples = write_examples(tmp_path)
    for status, errors in start("compute", tmp_path):
        assert status == 0, errors
    ones = {task: compute(task, "ddp", False, examples, tmp_path / "one" / task) for task in TASKS}
    for task, how, checkpointing in cases():
        name = f"{task}-{how}-{checkpointing}"
        first, second = (json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(2))
        assert first == second, name
        tolerance = LOSS_BFLOAT16 if task == "bfloat16" else LOSS
        for one, (loss, norm) in zip(ones[task], first, strict=True):
            assert loss == pytest.approx(one.loss, rel=tolerance), (name, one.step)
            assert norm == pytest.approx(one.gradient_norm, rel=10 * tolerance), (name, one.step)
        if task == "bfloat16":
            continue
        (saved,) = (tmp_path / name).glob("[0-9]*")
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert_like(load_file(saved / file), load_file(tmp_path / "one" / task / saved.name / file), name)
    assert "2.wav.gone" not in (tmp_path / "failing-0.txt").read_text()
    assert "process 0 of 2 ends: another process has failed" in (tmp_path / "failing-0.txt").read_text()
    assert "1.wav.gone" in (tmp_path / "failing-1.txt").read_text()


def write_recipe(folder: Path) -> Path:
    """A recipe over ten clips in batches of three: the last batch of an epoch leaves the second process without an example."""
    train_manifest, test_manifest = write_clips(folder / "clips", "train", 10), write_clips(folder / "clips", "test", 4)
    (folder / "tiny.yaml").write_text(RECIPE.format(train=train_manifest, test=test_manifest))
    return folder / "tiny.yaml"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def steps(run: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def assert_evaluated_alike(ours: Path, theirs: Path) -> None:
    """Each evaluation once, by the main process; of which each process has computed its share."""
    assert len(evaluations(ours)) == len(evaluations(theirs)) == 3
    for own, other in zip(evaluations(ours), evaluations(theirs), strict=True):
        assert own["held_out_loss"] == pytest.approx(other["held_out_loss"], rel=1e-4), ours.name
        assert {**own, "held_out_loss": 0} == {**other, "held_out_loss": 0}, ours.name


ALL_STEPS = [("first", step) for step in range(1, 7)] + [("second", step) for step in range(1, 5)]


def cut(run: Path, copy: Path) -> None:
    """A copy of a finished run as it was after step 4 of its first stage."""
    shutil.copytree(run, copy)
    for left in ("final", "checkpoints-1", "checkpoints-0/00000006"):
        shutil.rmtree(copy / left)
    (copy / "finished.json").unlink()


@pytest.mark.slow
def test_runs_stop_die_and_go_on_together(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    one = train(recipe, out=tmp_path / "one")
    survivor, killed = start("runs", tmp_path)
    assert killed[0] == -signal.SIGKILL, killed[1]
    assert survivor[0] == 2, survivor[1]
    assert "pal: error: process 0 of 2 ends: another process has ended or cannot be reached" in survivor[1]
    for how in PARALLEL:
        assert steps(tmp_path / how) == ALL_STEPS
        assert_evaluated_alike(tmp_path / how, one)
        assert_like(weights(tmp_path / how), weights(one), how)
        assert (tmp_path / how / "scores.json").read_text() == (one / "scores.json").read_text()
        # A signal to one process: all stop after the same step, which is saved once; then the same bits.
        for rank in range(2):
            line = (tmp_path / f"{how}-{rank}.txt").read_text()
            assert line.startswith("143 stopped by SIGTERM and saved at stage 'first', step 3; go on with: ")
        assert steps(tmp_path / f"{how}-stopped") == ALL_STEPS
        whole, stopped = weights(tmp_path / how), weights(tmp_path / f"{how}-stopped")
        assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())

    # A forward without a backward leaves shards whole, in what computes; what is saved after an evaluation is float32.
    table = weights(tmp_path / "low")["language_model.model.embed_tokens.weight"]
    assert not torch.equal(table, table.bfloat16().float())

    assert not (tmp_path / "killed" / "final").exists()

    (tmp_path / "killed").rename(tmp_path / "from-killed-ddp")
    for origin, how in (("one", "ddp"), ("one", "fsdp"), ("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")):
        cut(tmp_path / origin, tmp_path / f"from-{origin}-{how}")
    ((status, errors),) = run_all([[*TORCHRUN, WORKER, "resume", str(tmp_path)]], tmp_path / "resume")
    assert status == 0, errors
    assert errors.count("\nmodel: ") == 2 * 6, errors  # the plan and the end of each run: the main process alone shows
    for how in PARALLEL:
        cut(tmp_path / how, tmp_path / f"from-{how}-one")
        train(recipe, out=tmp_path / f"from-{how}-one", resume=True)
    resumed = sorted(tmp_path.glob("from-*"))
    assert len(resumed) == 8
    for run in resumed:
        assert steps(run) == ALL_STEPS
        assert_evaluated_alike(run, one)
        assert_like(weights(run), weights(one), run.name)
    for run, how in (("from-killed-ddp", "ddp"), ("from-fsdp-fsdp", "fsdp")):
        whole, again = weights(tmp_path / how), weights(tmp_path / run)
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items()), run


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@pytest.mark.parametrize("how", ["leave", "end"])
def test_no_thread_for_numbers_is_left_to_the_interpreters_end(how: str, tmp_path: Path) -> None:
    """Such a thread takes Python's lock when it lets go of a tensor; while the interpreter ends, that aborts the process."""
    for status, errors in start(how, tmp_path):
        assert status == 0, errors
    for rank in range(2):
        num = json.loads((tmp_path / f"threads-{rank}.json").read_text())
        assert num["joined"] > num["connected"]
        assert num["ended"] == num["connected"] if how == "end" else num["ended"] < num["connected"], num


@pytest.mark.parametrize("num", [1, 2, 3, 4])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_batch_is_shared_out_whole(size: int, num_parts: int, num: int) -> None:
    """Every example once; equally many parts in all processes, the reduction of each is one call."""
    shares = [Processes(rank, num).share(range(size), num_parts) for rank in range(num)]
    assert sorted(number for share in shares for part in share for number in part) == list(range(size))
    (lengths,) = {len(share) for share in shares}
    assert 1 <= lengths <= num_parts
    seeds = {tuple(Processes(rank, num).more_seed(part)) for rank in range(num) for part in range(lengths)}
    assert len(seeds) == num * lengths


def test_processes_that_were_promised_and_are_not_there_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each would train alone and write over the others. What is not asked for here is not connected."""
    monkeypatch.setattr(processes, "PartialState", lambda **_: SimpleNamespace(num_processes=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(PalError, match="WORLD_SIZE is 2 but processes connected: 1"):
        processes.join.__wrapped__()


def test_a_number_of_processes_without_a_launcher_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would write a launcher's variables into this process, and fail with words of its own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    PartialState._reset_state()
    with pytest.raises(PalError, match="WORLD_SIZE is 2 but no launcher has set RANK"):
        processes.join.__wrapped__()
    assert not set(LAUNCHER) & set(os.environ)
