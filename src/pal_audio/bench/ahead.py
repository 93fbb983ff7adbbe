"""`pal bench ... --compile-ahead N`: cases are compiled by N processes at once before they are measured one after another.

A process does one step of a case and ends. What it compiled lies in torch's cache (`TORCHINDUCTOR_CACHE_DIR`), where the
process that measures finds it. A case that fails here, or does not fit beside the others, is compiled when it is measured.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch

from pal_audio.bench import infer, train
from pal_audio.bench.case import Case
from pal_audio.data.cores import num_cores

_NO_RATES = {"matrix_flops": 1.0, "bandwidth_bytes": 1.0}  # nothing is measured


def compiles(case: Case) -> bool:
    """Whether a case has anything to compile."""
    decodes = str(case.extra.get("decode", "")).startswith("compiled")
    return case.setup.compile != "none" or case.setup.optimizer == "compiled" or decodes


def compile_ahead(
    verb: str, cases: Sequence[Case], device: torch.device, processes: int, say: Callable[[str], Any] = lambda line: None
) -> list[Case]:
    """Compile cases, several at once.

    Args:
        verb: "train" or "infer".
        cases: what is to be measured; those that compile nothing are left out.
        device: where.
        processes: at once.
        say: told of each case as it ends.

    Returns:
        The cases that were compiled.
    """
    done = []
    with ThreadPoolExecutor(processes) as pool:
        begun = {pool.submit(_compiled, verb, case, device, processes): case for case in cases if compiles(case)}
        for future in as_completed(begun):
            case, (seconds, error) = begun[future], future.result()
            if error is None:
                done.append(case)
            say(f"{case.title()}: {f'compiled in {seconds:.0f} s' if error is None else f'not compiled ahead: {error}'}")
    return done


def _compiled(verb: str, case: Case, device: torch.device, processes: int) -> tuple[float, str | None]:
    """Seconds, and the last line of what went wrong."""
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, num_cores() // processes))}
    asked = json.dumps({"verb": verb, "case": case.model_dump(mode="json"), "device": str(device)})
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pal_audio.bench.ahead"],
        input=asked,
        env=threads | os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return time.monotonic() - started, last if done.returncode else None


def main() -> None:
    """One step of the case on standard input."""
    asked = json.load(sys.stdin)
    case, measure_case = Case.model_validate(asked["case"]), (train if asked["verb"] == "train" else infer).measure_case
    measure_case(case, torch.device(asked["device"]), 1, 1, _NO_RATES)


if __name__ == "__main__":
    main()
