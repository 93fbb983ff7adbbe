"""What holds in every test: one thread, no network, no model taken from the tester's own surroundings, fixed seeds."""

import os

# Before torch is imported, and inherited by the commands that tests run.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", COLUMNS="100", NO_COLOR="1")
os.environ.pop("PAL_MODEL", None)

import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in every test, alone or in company."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of tests start worker processes where they say so, and not because the machine is large."""
    monkeypatch.setattr("pal_audio.data.cores.num_cores", lambda: 2)


@pytest.fixture(autouse=True)
def launcher_not_left_behind() -> Iterator[None]:
    """accelerate writes a launcher's variables into its own process; one that stays makes every later run wait for others."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    left = {name: os.environ.get(name) for name in names}
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    assert left == before
