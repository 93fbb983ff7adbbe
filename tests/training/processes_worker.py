"""What one of several processes does in test_parallel.py: many cases in one start, results left as safetensors and JSON.

python -m tests.training.processes_worker RANK NUM RENDEZVOUS JOB FOLDER
"""

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator

from pal_audio import cli
from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example, read_manifest
from pal_audio.errors import PalError, Stopped
from pal_audio.training import run as run_module
from pal_audio.training.loop import Record, StageRun
from pal_audio.training.objectives import AnswerObjective
from pal_audio.training.processes import join, leave
from pal_audio.training.recipe import Stage
from pal_audio.training.run import train
from tests.tiny import TINY_ENCODER, tiny_model

PARALLEL = ("ddp", "fsdp")
PARTS = {"connector": 1e-3, "projector": 1e-3, "encoder": 1e-3, "llm": 1e-3}
ADAPTER = {"type": "lora", "r": 2, "dropout": 0.0, "target": ["q_proj", "k_proj"]}
PROBE = {"train": {"connector": 1e-3, "projector": 1e-3, "llm.adapter": 1e-3}, "adapter": ADAPTER}
# Of each arm: what is computed, whatever the processes; `checkpointing` and `parallel` do not change it.
TASKS: dict[str, dict[str, Any]] = {
    "plits": {"arm": "plits"},
    "lal": {"arm": "lal"},
    "pal": {"arm": "pal"},
    "flamingo": {"arm": "flamingo", "train": PARTS | {"flamingo": 1e-3}, "flamingo": {"layers": "all", "attends": "last"}},
    "blocks-alone": {
        "arm": "flamingo",
        "train": {"connector": 1e-3, "flamingo": 1e-3},
        "encoder": TINY_ENCODER | {"frozen": True},
    },
    "adapter": {"arm": "pal", **PROBE, "encoder": TINY_ENCODER | {"frozen": True}},
    "unused": {"arm": "lal", "encoder": TINY_ENCODER | {"num_layers": 2, "encoder_layers": [1]}},
    "pal-multi": {"arm": "pal-multi"},
    "lfst": {"arm": "lfst", "lal": {}},
    "unpacked": {"arm": "pal", "stage": {"packing": False, "recompute_audio": True}},
    "workers": {"arm": "pal", "workers": 2},
    "bfloat16": {"arm": "pal", "precision": "bfloat16"},
}
CHECKPOINTED = ("plits", "lal", "pal", "flamingo")


def connect(rank: int, num: int, rendezvous: Path) -> None:
    """As a launcher would, but over a file: no port that another program could take meanwhile."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num), LOCAL_WORLD_SIZE=str(num))
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num, timeout=timeout)


class Given:
    """Batches written down one by one."""

    def __init__(self, batches: list[list[Example]]) -> None:
        self.batches = batches

    def from_step(self, first: int) -> Iterator[list[Example]]:
        yield from self.batches[first:]


def batches(examples: list[Example]) -> list[list[Example]]:
    """Of examples that are sound, text, sound, text, ...: two processes have them in each order, and one has none."""
    audio, text = examples[0::2], examples[1::2]
    return [
        [audio[0], text[0], audio[1], text[1]],  # sound in the first process, none in the second
        [text[0], audio[1], text[1], audio[2]],  # the other way round
        [text[0], text[1]],
        [audio[0], text[1], audio[2]],
        [audio[1]],  # nothing for the second process
        [text[2]],
        [audio[0], audio[1], audio[2], text[0], text[2]],  # in two parts, the second one empty in the second process
    ]


def compute(task: str, parallel: str, checkpointing: bool, examples: list[Example], folder: Path) -> list[Record]:
    """One epoch of `batches`; the checkpoint at its end is in `folder`."""
    options = {"train": PARTS, "precision": "float32", "stage": {}, "workers": 0, **TASKS[task]}
    arm, parts, precision, more, workers = (options.pop(name) for name in ("arm", "train", "precision", "stage", "workers"))
    model, processor = tiny_model("llama", arm, llm={"num_hidden_layers": 2, "tie_word_embeddings": True}, **options)
    given = batches(examples)
    stage = Stage(train=parts, steps=len(given), accumulate=2, warmup_steps=2, checkpointing=checkpointing, **more)
    run = StageRun(stage, 0, 7, folder, "identity", precision, parallel, workers)  # type: ignore[arg-type]
    run.run(AnswerObjective(model, Collator(processor), stage), Given(given), len(given), resume=False)
    return run.records


def cases() -> list[tuple[str, str, bool]]:
    return [(task, how, on) for task in TASKS for how in PARALLEL for on in (False, True) if not on or task in CHECKPOINTED]


def do_compute(rank: int, folder: Path) -> None:
    """Each case. The main process writes checkpoints, each process its losses. Then one process alone fails."""
    examples = read_manifest(folder / "examples.jsonl")
    for task, how, checkpointing in cases():
        name = f"{task}-{how}-{checkpointing}"
        records = compute(task, how, checkpointing, examples, folder / name)
        (folder / f"{name}-{rank}.json").write_text(json.dumps([(record.loss, record.gradient_norm) for record in records]))
    if rank == 1:
        examples[2].audio[0].path += ".gone"
    try:
        compute("lal", "ddp", False, examples, folder / "failing")
    except (PalError, OSError) as error:
        (folder / f"failing-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something in the middle of a step, counted from now."""
    clip, left = Accelerator.clip_grad_norm_, number

    def acting(self: Accelerator, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            act()
        return clip(self, *arguments)

    Accelerator.clip_grad_norm_ = acting
    try:
        yield
    finally:
        Accelerator.clip_grad_norm_ = clip


def do_runs(rank: int, folder: Path) -> None:
    """Whole runs of both kinds, and one of each that a signal to the second process alone has stopped and that goes on."""
    recipe = folder / "tiny.yaml"
    for how in PARALLEL:
        options = [f"parallel={how}"]
        train(recipe, options, folder / how)
        try:
            with at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM) if rank == 1 else None):
                train(recipe, options, folder / f"{how}-stopped")
        except Stopped as stop:
            (folder / f"{how}-{rank}.txt").write_text(f"{stop.status} {stop}")
        train(recipe, options, folder / f"{how}-stopped", resume=True)

    short = ["stages.0.steps=3", "stages.1.steps=1", "stages.1.eval_every=1"]
    train(recipe, ["parallel=fsdp", "precision=bfloat16", *short], folder / "low")
    _be_killed(rank, folder)


def _be_killed(rank: int, folder: Path) -> None:
    """The second process is killed in the second stage; what becomes of the other is its exit status and its line."""
    with at_step(8, lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None):
        status = cli.main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "killed")])
    sys.exit(status)


def do_resume(_: int, folder: Path) -> None:
    """Go on with what others have left, in the way that each folder's name ends with."""
    for run in sorted(folder.glob("from-*")):
        train(folder / "tiny.yaml", [f"parallel={run.name.rpartition('-')[2]}"], run, resume=True)


def num_threads() -> int:
    """Of this process, those that are not Python's included."""
    return len(os.listdir("/proc/self/task"))


def do_part(rank: int, folder: Path) -> None:
    """Tell a number, and end by `leave` or by the interpreter alone; how many threads there are before and after."""
    numbers = {"connected": num_threads()}

    def last() -> None:
        numbers["ended"] = num_threads()
        (folder / f"threads-{rank}.json").write_text(json.dumps(numbers))

    atexit.register(last)  # called after those that `join` registers
    assert join().total(1.0) == 2.0
    numbers["joined"] = num_threads()


def main(job: str, folder: str, rank: str | None = None, num: str = "", rendezvous: str = "") -> None:
    run_module.write_report = lambda *_: None  # its curves take longer than the runs
    if rank is not None:
        connect(int(rank), int(num), Path(rendezvous))
    jobs = {"compute": do_compute, "runs": do_runs, "resume": do_resume, "leave": do_part, "end": do_part}
    jobs[job](int(os.environ["RANK"]), Path(folder))
    if job != "end":
        leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
