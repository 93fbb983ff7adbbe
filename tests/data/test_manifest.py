"""Manifests: round trip, and for everything that can be wrong the file, the line and what."""

import json
from pathlib import Path
from typing import Any

import pytest

from pal_audio.data import AudioPart, Example, Message, TextPart, check_manifest, read_manifest, write_manifest
from pal_audio.errors import PalError


def entry(id: Any = "a", path: str = "a.flac", **changes: Any) -> dict[str, Any]:
    user = {"role": "user", "content": [{"type": "audio", "path": path}, {"type": "text", "text": "What?"}]}
    return {"id": id, "messages": [user, {"role": "assistant", "content": "a bell"}], **changes}


def written(folder: Path, *entries: Any) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries), encoding="utf-8")
    return path


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    clip = AudioPart(path="audio/ä b.flac", start_s=0.5, end_s=2)
    example = Example(
        id="x",
        messages=[
            Message(role="system", content="Listen."),
            Message(role="user", content=[clip, TextPart(text="Was?\n")]),
            Message(role="assistant", content="ein Hund"),
        ],
        task="classify",
        meta={"fold": 3, "events": [{"kind": "dog"}]},
    )
    write_manifest(tmp_path / "one.jsonl", [example])
    (read,) = read_manifest(tmp_path / "one.jsonl")
    assert read.audio[0].path == str((tmp_path / "audio/ä b.flac").resolve())
    assert example.audio[0].path == "audio/ä b.flac"  # writing changed nothing
    write_manifest(tmp_path / "two.jsonl", [read])
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "one.jsonl", "two.jsonl"]
    assert read.meta == example.meta


def test_prompt_answer_and_question() -> None:
    example = Example.model_validate(entry(id=7))
    assert example.id == "7"
    assert example.answer == "a bell"
    assert [message.role for message in example.prompt] == ["user"]
    assert example.question == "What?"
    asked = Example(id="b", messages=example.prompt)
    assert asked.answer is None
    assert Message(role="user", content=[TextPart(text="a"), AudioPart(path="x"), TextPart(text="b")]).text == "ab"
    assert asked.prompt == example.prompt


def test_blank_lines_and_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path, entry(), "", entry(id="b"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [example.id for example in read_manifest(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "valid dictionary"),
        ("[" * 100_000, "nested too deeply"),
        (entry(messages=[]), "messages: List should have at least 1 item"),
        (entry(messagez=1), "unknown key 'messagez'; did you mean 'messages'"),
        ({"messages": entry()["messages"]}, "id: Field required"),
        (entry(messages=[{"role": "user", "content": [{"type": "audio", "pth": "a"}]}]), "did you mean 'path'"),
        (entry(messages=[{"role": "user", "content": [{"type": "video", "path": "a"}]}]), "'video'"),
        (entry(messages=[{"role": "bot", "content": "a"}]), "messages.0.role"),
        (entry(messages=[{"role": "assistant", "content": [{"type": "audio", "path": "a"}]}]), "assistant message holds audio"),
        (
            entry(messages=[{"role": "user", "content": [{"type": "audio", "path": "a", "start_s": 2, "end_s": 1}]}]),
            r"end_s 1\.0 must lie after start_s 2\.0",
        ),
        (
            entry(messages=[{"role": "user", "content": [{"type": "audio", "path": "a", "start_s": float("nan")}]}]),
            "start_s",
        ),
        (entry(id="a"), "id 'a' is already that of line 1"),
        (entry(id="b", path="../other/a.flac"), "leaves the manifest's folder"),
        (entry(id="b", path="/etc/passwd"), "leaves the manifest's folder"),
        (entry(id="b", path="a\0b"), "null"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, said: str) -> None:
    path = written(tmp_path, entry(), "", line)
    with pytest.raises(PalError, match=said) as raised:
        read_manifest(path)
    assert str(raised.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(raised.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PalError, match=r"none\.jsonl: cannot read the manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(PalError, match="no example"):
        read_manifest(written(tmp_path, ""))
    (tmp_path / "bad.jsonl").write_bytes(b"\n\xff\n")
    with pytest.raises(PalError, match=r"bad\.jsonl, line 2: .*utf-8"):
        read_manifest(tmp_path / "bad.jsonl")


def test_audio_outside_needs_a_root(tmp_path: Path) -> None:
    folder, data, other = (tmp_path / name for name in ("m", "data", "data2"))
    for each in (folder, data, other):
        each.mkdir()
    for name in ("../data/a.flac", str(data / "a.flac")):
        path = written(folder, entry(path=name))
        assert read_manifest(path, roots=[data])[0].audio[0].path == str((data / "a.flac").resolve())
        with pytest.raises(PalError, match="leaves"):
            read_manifest(path, roots=[other])
    with pytest.raises(PalError, match="leaves"):  # a name that merely begins like the root's
        read_manifest(written(folder, entry(path="../data2/a.flac")), roots=[data])
    (folder / "link").symlink_to(data)
    with pytest.raises(PalError, match="leaves"):
        read_manifest(written(folder, entry(path="link/a.flac")))


def test_a_folder_of_many_files_is_followed_once_and_each_link_in_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[str] = []
    resolve = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda self, **options: (followed.append(str(self)), resolve(self, **options))[1])
    for name in ("m/audio", "outside"):
        (tmp_path / name).mkdir(parents=True)
    names = [f"audio/{number}.flac" for number in range(50)]
    for name in names:
        (tmp_path / "m" / name).touch()
    read = read_manifest(written(tmp_path / "m", *(entry(id=name, path=name) for name in names)))
    assert [example.audio[0].path for example in read] == [str(tmp_path / "m" / name) for name in names]
    assert len(followed) < 10, followed
    (tmp_path / "m" / "audio" / "in.flac").symlink_to(tmp_path / "m" / "audio" / "0.flac")
    (tmp_path / "m" / "audio" / "out.flac").symlink_to(tmp_path / "outside")
    (within,) = read_manifest(written(tmp_path / "m", entry(path="audio/in.flac")))
    assert within.audio[0].path == str(tmp_path / "m" / names[0])
    for name in ("audio/out.flac", "audio/../../outside", "audio/..\0"):
        with pytest.raises(PalError, match=r"line 2: .*(leaves|null)"):
            read_manifest(written(tmp_path / "m", entry(id="first", path=names[0]), entry(path=name)))


def test_check_lists_everything(tmp_path: Path) -> None:
    (tmp_path / "a.flac").touch()
    path = written(tmp_path, entry(), entry(id="b", path="gone.flac"), "{", entry(id="c", path="../x"))
    problems = check_manifest(path)
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}, line {n}" for n in (2, 3, 4)]
    assert "no such audio file" in problems[0]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    example = Example.model_validate(entry())
    write_manifest(path, [example])
    before = path.read_bytes()

    def broken() -> Any:
        yield example
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_manifest(path, broken())
    assert path.read_bytes() == before
