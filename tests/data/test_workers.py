"""What worker processes make comes in the order of the tasks, errors and warnings too; none of them outlives its use."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import pytest
import torch

from pal_audio.data import cores
from pal_audio.data.cores import num_cores, reading_workers
from pal_audio.data.workers import in_workers
from pal_audio.errors import PalError


def squared(number: int) -> dict[str, torch.Tensor]:
    time.sleep(0.02 * (number % 3 == 0))  # so that the first is not the fastest
    if number == 5:
        raise PalError("clip 5: cannot be read")
    if number % 2:
        warnings.warn("clip is short", stacklevel=1)
    return {
        "value": torch.tensor([number**2]),
        "process": torch.tensor(os.getpid()),
        "threads": torch.tensor(torch.get_num_threads()),
    }


def dying(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def killed_by_signals(number: int) -> int:
    for name in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), name)
    return number


def wrong(number: int) -> int:
    raise KeyError(number)


def no_workers_left() -> bool:
    return not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_come_in_order_with_errors_at_their_turn_and_each_warning_once(num_workers: int) -> None:
    made = in_workers(squared, range(9), num_workers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        results = [next(made) for _ in range(5)]
    assert [int(result["value"]) for result in results] == [0, 1, 4, 9, 16]
    assert [str(item.message) for item in caught] == ["clip is short"]
    processes = {int(result["process"]) for result in results}
    assert (os.getpid() in processes) == (num_workers == 0)
    assert len(processes) == max(1, num_workers)
    assert num_workers == 0 or {int(result["threads"]) for result in results} == {1}
    with pytest.raises(PalError, match=r"^clip 5: cannot be read$"):
        next(made)
    made.close()
    assert no_workers_left()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_task_that_cannot_be_had_is_an_error_at_its_turn(num_workers: int) -> None:
    def tasks() -> Iterator[int]:
        yield from (1, 2)
        raise PalError("shard is damaged")

    made = in_workers(abs, tasks(), num_workers)
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(PalError, match="shard is damaged"):
        next(made)


def test_random_numbers_are_those_of_no_workers() -> None:
    drawn = []
    for num_workers in (0, 2):
        torch.manual_seed(3)
        assert list(in_workers(abs, range(3), num_workers)) == [0, 1, 2]
        drawn.append(torch.rand(2))
    assert torch.equal(*drawn)


def test_a_worker_that_dies_is_one_clear_line() -> None:
    with pytest.raises(PalError, match=r"a worker process that reads sound died; was it killed, .*workers=0") as caught:
        list(in_workers(dying, range(8), 2))
    assert "\n" not in str(caught.value)
    assert no_workers_left()


def test_signals_are_for_the_main_process() -> None:
    assert list(in_workers(killed_by_signals, range(4), 2)) == [0, 1, 2, 3]


def test_a_program_may_end_with_an_open_iterator() -> None:
    lines = (
        "from pal_audio.data.workers import in_workers",
        "made = in_workers(abs, range(9), 2)",
        "raise SystemExit(next(made) + 3)",
    )
    script = "\n".join(lines)
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 3


def test_a_mistake_of_ours_keeps_its_name() -> None:
    with pytest.raises(KeyError, match="Caught KeyError in DataLoader worker"):
        list(in_workers(wrong, range(2), 1))
    assert no_workers_left()


def test_tasks_are_taken_two_ahead_of_each_worker() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    made = in_workers(abs, tasks(), 2)
    next(made)
    assert len(taken) <= 2 * 2 + 1
    made.close()
    assert no_workers_left()


@pytest.mark.parametrize(
    ("cores_there", "processes", "asked", "expected"),
    [(1, 1, None, 0), (2, 1, None, 0), (4, 1, None, 3), (16, 2, None, 7), (64, 1, None, 16), (2, 1, 3, 3), (16, 1, 0, 0)],
)
def test_how_many_read_by_default(
    cores_there: int, processes: int, asked: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "num_cores", lambda: cores_there)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert reading_workers(asked) == expected


@pytest.mark.parametrize(("text", "expected"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("x", None)])
def test_a_container_may_have_fewer_cores(
    text: str, expected: int | None, tmp_path: "os.PathLike[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = cores.Path(tmp_path) / "cpu.max"
    monkeypatch.setattr(cores, "_QUOTA", quota)
    all_of_them = num_cores()
    quota.write_text(text)
    assert num_cores() == (all_of_them if expected is None else expected)
