"""Python's search for unreachable objects is off while very many are made, and as it was afterwards."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pal_audio.data import read_manifest
from pal_audio.many_objects import importing, left_alone, many_objects


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


def test_what_imports_made_is_never_searched_for_garbage_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a_module_of_this_test.py").write_text("import gc\nWAS_ON = gc.isenabled()\nKEPT = [[] for _ in range(5000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    with importing():
        import a_module_of_this_test  # type: ignore[import-not-found]
    assert gc.isenabled()
    assert not a_module_of_this_test.WAS_ON
    assert gc.get_freeze_count() >= before + 5000
    garbage, frozen = [[] for _ in range(5000)], gc.get_freeze_count()
    with importing():
        import a_module_of_this_test
    assert gc.get_freeze_count() == frozen, "nothing was imported, so nothing of ours is kept from being freed"
    assert garbage
    with pytest.raises(ModuleNotFoundError), importing():
        import no_module_of_any_name  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
    monkeypatch.delitem(sys.modules, "a_module_of_this_test")
    gc.unfreeze()
