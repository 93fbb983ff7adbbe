"""Python's search for unreachable objects is off while very many are made, and as it was afterwards."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from pal_audio.data import read_manifest
from pal_audio.data.many_objects import left_alone, many_objects


@pytest.fixture
def passes() -> Any:
    """Generations that were searched while the test ran."""
    found: list[int] = []

    def note(phase: str, told: dict[str, int]) -> None:
        if phase == "start":
            found.append(told["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_the_search_is_off_within_and_on_again_after_an_error() -> None:
    def fail() -> None:
        with many_objects():
            with many_objects():
                assert not gc.isenabled()
            assert not gc.isenabled(), "the outer one still holds"
            raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


def test_what_is_left_alone_is_searched_again_afterwards() -> None:
    def fail() -> None:
        with left_alone():
            assert gc.get_freeze_count() > 0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.get_freeze_count() == 0


def test_a_manifest_is_read_without_searching_it(tmp_path: Path, passes: list[int]) -> None:
    row = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a bell"}]}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n in range(3000)))
    gc.collect()
    passes.clear()
    assert len(read_manifest(tmp_path / "m.jsonl")) == 3000
    assert not [generation for generation in passes if generation > 0]
