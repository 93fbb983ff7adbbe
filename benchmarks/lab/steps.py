"""Steps with their inputs and done-marks, several at once, each with a log of its own.

A step is done when its mark is there and so is what it made. Its commands are those of `pal`, each a process; they are given
`--resume`, so a step that was stopped goes on. A step that fails stops those alone that need it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.lab.gpus import VISIBLE, Places

import pal_audio
from pal_audio.data.cores import num_cores
from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.training.watch import duration_text

_GRACE_S = 40.0  # for processes to save what they have done
_TAIL_LINES = 12
_LOOK_S = 0.2


def _nothing() -> dict[str, Any]:
    return {}


class CommandError(PalError):
    """A command of a step ended with another status than 0.

    Attributes:
        status: negative where a signal ended it.
        lines: that this process wrote, the last of them.
    """

    def __init__(self, message: str, status: int, lines: list[str]) -> None:
        super().__init__(message)
        self.status, self.lines = status, lines


def _no_excuse(error: CommandError) -> None:
    return None


@dataclass(frozen=True)
class Step:
    """One piece of the flow.

    Attributes:
        name: also of its log.
        kind: steps of a kind take about as long.
        mark: the file that says that it is done.
        needs: steps that must be done before.
        follows: steps that must be done or given up before.
        products: what must be there beside the mark.
        commands: arguments of `pal`, asked for when the step starts.
        finish: what is left to do in this process, and the content of the mark.
        excuse: the content of the mark where a command failed with this error and that is a result too; None: the step failed.
        alone: nothing else runs beside it.
        on_gpu: its commands compute on a GPU where there is one; without it they see none.
    """

    name: str
    kind: str
    mark: Path
    needs: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    products: tuple[Path, ...] = ()
    commands: Callable[[], list[list[str]]] = list
    finish: Callable[[], dict[str, Any]] = _nothing
    excuse: Callable[[CommandError], dict[str, Any] | None] = _no_excuse
    alone: bool = False
    on_gpu: bool = True

    @property
    def done(self) -> bool:
        return self.mark.is_file() and all(product.exists() for product in self.products)


class InterruptedStepError(Exception):
    """The step was told to stop."""


@dataclass
class Runner:
    """Runs steps until all are done, failed or given up, or until told to stop.

    Args:
        steps: in the order in which they are to be begun.
        out: where processes run, and where logs go.
        jobs: steps at once.
        deadline: `time.monotonic()` after which nothing is begun and what runs is told to save and stop.
        cpu_alone: hide accelerators from the processes.
        say: gets a line for each thing that happened.
        gpus: names of those that steps are spread over, one for each step; none leaves the choice to the processes.
        program: what takes a step's commands.
    """

    steps: Sequence[Step]
    out: Path
    jobs: int = 1
    deadline: float | None = None
    cpu_alone: bool = False
    say: Callable[[str], None] = print
    gpus: Sequence[str] = ()
    program: Sequence[str] = (sys.executable, "-m", "pal_audio")
    failed: dict[str, str] = field(default_factory=dict)
    _children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # a signal may come while it is held

    def run(self) -> bool:
        """Do what is to do.

        Returns:
            Whether all steps are done.
        """
        by_name = {step.name: step for step in self.steps}
        running: dict[Future[float], Step] = {}
        places = Places(self.gpus)
        with ThreadPoolExecutor(self.jobs) as pool:
            while True:
                if not self._stopping.is_set() and self.deadline is not None and time.monotonic() > self.deadline:
                    self.say(f"time is up: {len(running)} steps are told to save and stop")
                    self.stop()
                for step in self.steps:
                    if self._fits(step, list(running.values())) and self._ready(step, by_name):
                        gpu = places.take(step.name) if step.on_gpu else None
                        running[pool.submit(self._work, step, gpu)] = step
                if not running:
                    break
                ended, _ = wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                for future in ended:
                    step = running.pop(future)
                    self._note(step, future, len(running), places.give_back(step.name))
        for name, reason in self.failed.items():
            self.say(f"failed: {name}: {reason}")
        for step in self.steps:
            if lacking := [name for name in step.needs if name in self._given_up(by_name)]:
                self.say(f"not begun: {step.name}, which needs {', '.join(lacking)}")
        return all(step.done for step in self.steps)

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin nothing more, and tell what runs to save and stop; what does not listen is killed after a while."""
        self._stopping.set()
        with self._lock:
            children = list(self._children)
        for child in children:
            child.send_signal(signal.SIGTERM)
        timer = threading.Timer(_GRACE_S, _kill, [children])
        timer.daemon = True
        timer.start()

    def _fits(self, step: Step, running: list[Step]) -> bool:
        """Whether there is room for a step beside those that run."""
        if self._stopping.is_set() or len(running) >= self.jobs or step in running:
            return False
        return not running or not (step.alone or any(other.alone for other in running))

    def _given_up(self, by_name: dict[str, Step]) -> set[str]:
        """Failed steps and those that need them."""
        lost = set(self.failed)
        for step in self.steps:  # each stands after what it needs
            if not step.done and any(name in lost for name in step.needs):
                lost.add(step.name)
        return lost

    def _ready(self, step: Step, by_name: dict[str, Step]) -> bool:
        lost = self._given_up(by_name)
        if step.name in lost or step.done or not all(by_name[name].done for name in step.needs):
            return False
        return all(name in lost or by_name[name].done for name in step.follows)

    def _work(self, step: Step, gpu: str | None) -> float:
        """Run a step's commands and write its mark; gives the seconds that it took."""
        started = time.monotonic()
        try:
            for arguments in step.commands():
                self._call(step, arguments, gpu)
        except CommandError as error:
            excused = step.excuse(error)
            if excused is None:
                raise
            content = excused
        else:
            content = step.finish()
        seconds = time.monotonic() - started
        step.mark.parent.mkdir(parents=True, exist_ok=True)
        told = {"step": step.name, "kind": step.kind, "seconds": seconds, "gpu": gpu}
        write_text(step.mark, json.dumps({**told, **content}) + "\n")
        return seconds

    def _call(self, step: Step, arguments: list[str], gpu: str | None) -> None:
        log = self._log(step)
        before = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as file:
            with self._lock:
                if self._stopping.is_set():
                    raise InterruptedStepError
                child = subprocess.Popen(
                    [*self.program, *arguments], cwd=self.out, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env=self._environment(step, gpu),
                )  # fmt: skip
                self._children.add(child)
            status = child.wait()
        with self._lock:
            self._children.discard(child)
        if status and self._stopping.is_set():
            raise InterruptedStepError
        if status:
            lines = log.read_bytes()[before:].decode(errors="replace").splitlines()[-_TAIL_LINES:]
            tail = "\n".join(f"    {line}" for line in lines)
            told = f"`pal {' '.join(arguments[:2])} ...` ended with status {status}; the end of {log}:\n{tail}"
            raise CommandError(told, status, lines)

    def _log(self, step: Step) -> Path:
        folder = self.out / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{step.name}.log"

    def _environment(self, step: Step, gpu: str | None) -> dict[str, str]:
        package = str(Path(pal_audio.__file__).parents[1])
        paths = [package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        threads = str(max(1, num_cores() // self.jobs))
        hides_all = self.cpu_alone or (bool(self.gpus) and not step.on_gpu)
        seen = {VISIBLE: ""} if hides_all else {} if gpu is None else {VISIBLE: gpu}
        return {
            **os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "OMP_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false", **seen,
        }  # fmt: skip

    def _note(self, step: Step, future: Future[float], num_running: int, gpu: str | None) -> None:
        try:
            seconds = future.result()
        except InterruptedStepError:
            self.say(f"stopped: {step.name}; the same command goes on with it")
            return
        except PalError as error:
            self.failed[step.name] = str(error)
            self.say(f"failed: {step.name}: {error}")
            return
        except Exception as error:  # ours: the other steps go on, and the log has the traceback
            with open(self._log(step), "a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            self.failed[step.name] = f"{type(error).__name__}: {error}; see {self._log(step)}"
            self.say(f"failed: {step.name}: {self.failed[step.name]}")
            return
        num_done = sum(step.done for step in self.steps)
        left = time_left(self.steps, self.jobs)
        where = f" on GPU {gpu}" if gpu is not None and len(self.gpus) > 1 else ""
        self.say(f"[{num_done}/{len(self.steps)}] {step.name}: {duration_text(seconds)}{where}; {num_running} running; {left}")


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()


def time_left(steps: Sequence[Step], jobs: int) -> str:
    """About how long the steps take that are not done, by the done ones of their kinds."""
    taken: dict[str, list[float]] = {}
    for step in steps:
        if step.done:
            taken.setdefault(step.kind, []).append(json.loads(step.mark.read_text(encoding="utf-8"))["seconds"])
    left = [step for step in steps if not step.done]
    known = sum(median(taken[step.kind]) for step in left if step.kind in taken) / jobs
    unknown = sum(step.kind not in taken for step in left)
    told = f"about {duration_text(known)} left" if known else "nothing left" if not left else "time left not known yet"
    return told + (f", and {unknown} steps of kinds not yet timed" if unknown and known else "")
