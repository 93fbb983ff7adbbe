"""`inspect_manifest`: every fault of every line, with its kind and number, and what a clean manifest holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pal_audio.data import check as check_module
from pal_audio.data import inspect_manifest
from pal_audio.data.check import shown
from pal_audio.errors import PalError

from .test_manifest import entry, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A second of sound, one of silence, half a file, and text that is named like sound."""
    wave = 0.1 * np.sin(np.arange(16_000) / 5)
    soundfile.write(tmp_path / "a.flac", wave, 16_000)
    soundfile.write(tmp_path / "silent.wav", 0 * wave, 16_000)
    soundfile.write(tmp_path / "whole.wav", wave, 16_000)
    (tmp_path / "half.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:16_000])
    (tmp_path / "text.wav").write_text("not a sound")
    return tmp_path


def talk(*turns: tuple[str, Any], id: str = "a") -> dict[str, Any]:
    return {"id": id, "messages": [{"role": role, "content": content} for role, content in turns]}


CLIP = {"type": "audio", "path": "a.flac"}


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("{", "json", "Expecting property name"),
        ("[" * 100_000, "json", "nested too deeply"),
        (entry(messagez=1), "form", "did you mean 'messages'"),
        (entry(path="gone.flac"), "missing", "no such audio file"),
        (entry(path="."), "missing", "no such audio file"),
        (entry(path="../a.flac"), "path", "leaves the manifest's folder"),
        (entry(path="/etc/passwd"), "path", "leaves the manifest's folder"),
        (entry(path="loop"), "path", "cannot be followed"),
        (entry(path="a\0b"), "path", "null"),
        (entry(path="x" * 300), "path", "too long"),
        (entry(path="text.wav"), "audio", "nothing in it decodes as audio"),
        (entry(path="silent.wav"), "silent", "silent"),
        (entry(path="half.wav"), "truncated", "truncated or damaged"),
        (talk(("user", [CLIP | {"start_s": 2}]), ("assistant", "x")), "audio", "start_s=2 is not before its end"),
        (talk(("assistant", "x"), ("user", "y")), "roles", "roles assistant, user;"),
        (talk(("user", "y"), ("user", "y"), ("assistant", "x")), "roles", "user and assistant in turn"),
        (talk(("user", "y"), ("system", "y"), ("assistant", "x")), "roles", "one system message or none"),
        (talk(("system", "y")), "roles", "roles system"),
        (talk(("user", "y"), ("assistant", " \n")), "empty", "messages.1: the answer is empty"),
        (talk(("user", "y"), ("assistant", []), ("user", "z"), ("assistant", "x")), "empty", "messages.1: the answer is empty"),
        (talk(("user", ""), ("assistant", "x")), "empty", "messages.0: the question is empty"),
        (talk(("user", "<audio>What?"), ("assistant", "x")), "markers", "1 of <audio> in the text for 0 clips"),
        (
            talk(("user", [CLIP, {"type": "text", "text": "<sound><|audio|>"}])),
            "markers",
            "2 of <sound>, <|audio|> in the text for 1",
        ),
    ],
)
def test_a_fault_has_its_kind_and_line(folder: Path, line: Any, kind: str, said: str) -> None:
    (folder / "loop").symlink_to("loop")
    path = written(folder, entry(id="first"), "", line, entry(id="last"))
    (problem,) = inspect_manifest(path).problems
    assert (problem.line, problem.kind) == (3, kind)
    assert said in problem.message
    assert shown(path, problem).startswith(f"{path}, line 3: ")


def test_a_clean_manifest(folder: Path) -> None:
    stretch = talk(("user", [CLIP | {"start_s": 0.25, "end_s": 0.75}, {"type": "text", "text": "?"}]), id="c")
    turns = talk(("system", "s"), ("user", [CLIP]), ("assistant", "x"), ("user", "and?"), ("assistant", "y"), id="d")
    path = written(folder, stretch, entry(), entry(id="b"), turns)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    report = inspect_manifest(path)
    assert report.problems == []
    assert (report.num_examples, report.num_open, report.num_clips) == (4, 1, 2)  # a clip is heard once
    assert report.seconds == pytest.approx(1.5)
    assert report.first is not None
    assert report.first.id == "a"  # the first with an answer


def test_all_faults_of_a_line_are_listed(folder: Path) -> None:
    bad = talk(
        ("assistant", ""),
        ("user", [{"type": "audio", "path": "gone"}, CLIP | {"path": "../x"}, {"type": "text", "text": "<audio>"}]),
    )
    twice = entry(id="a", messages=[{"role": "bot"}])
    report = inspect_manifest(written(folder, bad, twice))
    assert [(problem.line, problem.kind) for problem in report.problems] == [
        (1, "roles"),
        (1, "empty"),
        (1, "markers"),
        (1, "missing"),
        (1, "path"),
        (2, "duplicate"),
        (2, "form"),
        (2, "form"),
    ]
    assert "line 1" in report.problems[5].message


def test_a_bad_clip_is_named_at_each_line_and_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, load_audio = [], check_module.load_audio

    def counted(*arguments: Any, **options: Any) -> Any:
        heard.append(arguments)
        return load_audio(*arguments, **options)

    monkeypatch.setattr(check_module, "load_audio", counted)
    path = written(folder, entry(path="text.wav"), entry(id="b", path="text.wav"))
    assert [problem.line for problem in inspect_manifest(path).problems] == [1, 2]
    assert len(heard) == 1


def test_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder, entry())
    (problem,) = inspect_manifest(path, max_seconds=0.5).problems
    assert "longer than max_seconds=0.5" in problem.message
    monkeypatch.setattr(check_module, "MAX_LINE_BYTES", 300)
    path = written(folder, entry(), "x" * 1000, entry(id="b"))
    assert [(problem.line, problem.message) for problem in inspect_manifest(path).problems] == [(2, "longer than 300 bytes")]


def test_roots_progress_and_files_that_are_none(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    path = written(other, entry(path=str(folder / "a.flac")))
    seen: list[tuple[int, int]] = []
    report: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    assert inspect_manifest(path, [folder], progress=report).problems == []
    assert seen == [(1, 1)]
    assert [problem.kind for problem in inspect_manifest(path).problems] == ["path"]
    assert [tuple(problem)[:2] for problem in inspect_manifest(written(other, "")).problems] == [(0, "empty")]
    with pytest.raises(PalError, match=r"gone\.jsonl: cannot read the manifest"):
        inspect_manifest(other / "gone.jsonl")
    assert json.dumps([problem._asdict() for problem in inspect_manifest(path).problems])
