"""What a shard of a stranger may hold, and what is wrong with one: each fault one line that names the shard."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pal_audio.data import shard_index, shard_reader
from pal_audio.data.shard_index import INDEX, Shard, find_shards
from pal_audio.data.shard_reader import ShardReader
from pal_audio.data.shard_sample import Sample
from pal_audio.errors import PalError
from tests.data.shard_cases import foreign, ids, line, sound, source, stream, tar, written


def samples(path: Path) -> list[Sample]:
    (shard,) = find_shards(str(path))
    with ShardReader(shard) as reader:
        return [reader.read(position) for position in range(shard.num_examples)]


def ours(key: str, *fields: str, **changes: Any) -> list[tuple[str, bytes]]:
    content = json.dumps(line(key, *(f"{key}.{field}" for field in fields), **changes)).encode()
    return [(f"{key}.json", content), *((f"{key}.{field}", sound(number)) for number, field in enumerate(fields))]


def refused(path: Path, words: str, num: int = 1) -> None:
    """The shard is refused, when it is found or when it is read, by one line that names it."""
    with pytest.raises(PalError, match=words) as caught:
        ids(stream(source(path)).batches(1), num)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_of_others(tmp_path: Path) -> None:
    left = [("README.md", b"x"), ("._0000.flac", b"x"), ("__a.json", b"x"), ("0000.jpg", b"x")]
    path = tar(tmp_path / "x.tar", [*left, *foreign(3)])
    examples = [sample.example("what?") for sample in samples(path)]
    assert [(example.id, example.answer) for example in examples] == [(f"x/000{n}", f"sound {n}") for n in range(3)]
    assert [example.question for example in examples] == ["what?"] * 3
    assert [example.audio[0].content for example in examples] == [sound(number) for number in range(3)]
    assert examples[0].audio[0].path == f"{path}/0000.flac"
    with pytest.raises(PalError, match=r"x.tar, example '0000': .* give the source a `question`"):
        samples(path)[0].example()
    folders = tar(
        tmp_path / "y.tar", [(f"./{part}/1.{end}", body) for part in "ab" for end, body in (("wav", sound(1)), ("txt", b"t"))]
    )
    assert [sample.example("?").id for sample in samples(folders)] == ["y/a/1", "y/b/1"]


def test_lines_with_several_clips(tmp_path: Path) -> None:
    files = [*ours("7", "0.flac", "1.FLAC", start_s=0.05, end_s=0.15), ("7.2.flac", b"not named"), *ours("8"), *ours("9", "bin")]
    first, text_only, odd = (sample.example() for sample in samples(tar(tmp_path / "x.tar", files)))
    assert [part.content for part in first.audio] == [sound(0), sound(1)]
    assert {(part.start_s, part.end_s) for part in first.audio} == {(0.05, 0.15)}
    assert (text_only.id, text_only.audio, odd.audio[0].content) == ("8", [], sound(0))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            [("1.json", json.dumps(line("1", "1.flac")).encode())],
            r"example '1': its JSON names the sound '1.flac', which does not",
        ),
        ([("1.json", json.dumps(line("1", "2.flac")).encode()), ("2.flac", b"x")], "names the sound '2.flac', which does not"),
        ([("1.json", json.dumps(line("1", "/etc/hostname")).encode())], "names the sound '/etc/hostname', which does not"),
        ([("1.json", json.dumps(line("1", "../1.flac")).encode()), ("1.flac", b"x")], "names the sound '../1.flac', which"),
        ([("1.json", json.dumps(line("1", "flac")).encode()), ("1.flac", b"x")], "names the sound 'flac', which does not"),
        ([("1.json", json.dumps(line("1", "1.json")).encode())], "names the sound '1.json', which does not"),
        ([("1.txt", b"a bell")], "example '1': a text without its sound"),
        ([("1.flac", b"x")], "example '1': no text"),
        ([("1.json", b"{}"), ("1.flac", b"x")], "no text: it needs"),
        ([("1.json", b'{"text": 3}'), ("1.flac", b"x")], "no text: it needs"),
        ([("1.json", b'{"text": []}'), ("1.flac", b"x")], "no text: it needs"),
        ([("1.json", b"{"), ("1.flac", b"x")], "its .json is not JSON"),
        ([("1.json", b"\xff"), ("1.flac", b"x")], "its .json is not JSON"),
        ([("1.json", b"[" * 100_000), ("1.flac", b"x")], "its .json is not JSON"),
        ([("1.txt", b"\xff"), ("1.flac", b"x")], "its .txt is not UTF-8"),
        ([("1.json", b'{"id": "1", "messages": [], "taks": ""}')], "did you mean 'task'"),
        ([("../1.json", b"{}")], r"holds the name '../1.json', which leads out"),
        ([("a/../../1.json", b"{}")], "which leads out"),
        ([("/1.json", b"{}")], "which leads out"),
        ([("a\\..\\1.json", b"{}")], "which leads out"),
        ([("1\n.json", b"{}")], "which leads out"),
        ([("1.txt", b"a"), ("1.flac", b"x"), ("2.txt", b"a"), ("2.flac", b"x"), ("1.wav", b"x")], "'1' do not lie side by side"),
        ([("1.txt", b"a"), ("1.flac", b"x"), ("1.FLAC", b"x")], "holds '1.FLAC' twice"),
    ],
)
def test_faults_of_an_example(tmp_path: Path, files: list[tuple[str, bytes]], words: str) -> None:
    refused(tar(tmp_path / "bad.tar", files), words, 3)


def test_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as file:
        content = ours("1", "flac")[0][1]
        header = tarfile.TarInfo("1.json")
        header.size = len(content)
        file.addfile(header, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("1.flac")
            link.type, link.linkname = kind, "/etc/hostname"
            file.addfile(link)
    refused(tmp_path / "bad.tar", "which does not lie beside it")


def claiming(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    header = tarfile.TarInfo("9.flac")
    header.size, header.type = size, kind
    return header.tobuf(tarfile.GNU_FORMAT)


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.tar"
    whole = tar(tmp_path / "good.tar", foreign(2)).read_bytes().rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512)
    path.write_bytes(whole + claiming(2**50) + b"\0" * 1024)
    refused(path, "cut within '9.flac'", 3)
    path.write_bytes(whole + claiming(2**50, tarfile.GNUTYPE_SPARSE) + b"\0" * 1024)
    refused(path, "damaged|sparse", 3)
    path.write_bytes(whole + claiming(2**40, tarfile.XHDTYPE) + b"\0" * 1024)
    refused(path, "a header claims 1099511627776 bytes", 3)
    tar(path, [*foreign(1), ("0001.flac", b"x" * 3000), ("0001.txt", b"a")])
    monkeypatch.setattr(shard_reader, "MAX_EXAMPLE_BYTES", 4_000)
    assert len(samples(path)) == 2
    monkeypatch.setattr(shard_reader, "MAX_EXAMPLE_BYTES", 2_999)
    refused(path, "with '0001.flac' of 3000 bytes an example is over the limit of 2999")
    tar(path, [*foreign(1), ("0001.flac", b"x" * 2000), ("0001.wav", b"x" * 2000), ("0001.txt", b"a")])
    refused(path, "with '0001.wav' of 2000 bytes an example is over the limit of 2999")
    monkeypatch.setattr(shard_reader, "MAX_TEXT_BYTES", 5)
    tar(path, foreign(2))
    refused(path, "bytes an example is over the limit of 5")


def test_damage_is_never_the_end(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    whole = tar(path, foreign(6)).read_bytes()
    at = whole.index(b"0003.flac")
    for damaged in (
        whole[:at] + b"\1" + whole[at + 1 :],  # a header in the middle
        whole[:at],  # cut between two files
        whole[: at + 700],  # cut in a file
        whole[: at + 100],  # cut in a header
        whole[:at] + b"\0" * 512 + whole[at + 512 :],  # a header wiped out
        b"x" * 2000,
        b"",
    ):
        path.write_bytes(damaged)
        refused(path, "damaged|cut|no plain tar", 6)
    import gzip

    path.write_bytes(gzip.compress(whole))
    refused(path, "no plain tar file .* a compressed one must be unpacked")


def test_empty_shards(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [])
    with pytest.warns(UserWarning, match=r"0.tar: it holds no example"), pytest.raises(PalError, match="no shard here holds"):
        find_shards(str(tmp_path))
    tar(tmp_path / "1.tar", foreign(2))
    with pytest.warns(UserWarning, match=r"0.tar: it holds no example and is passed over"):
        assert [Path(shard.path).name for shard in find_shards(str(tmp_path))] == ["1.tar"]


def test_what_the_index_says_must_hold(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    written(folder, 12)
    shards = sorted(folder.glob("*.tar"))
    kept = shards[1].read_bytes()
    mine = stream(source(folder))
    flipped = bytearray(kept)
    flipped[len(kept) // 2] ^= 1
    for content, words in ((bytes(flipped), "its checksum is not that of the index"), (kept[:-512], "bytes, the index says")):
        shards[1].write_bytes(content)
        for _ in range(2):  # asking again does not help
            with pytest.raises(PalError, match=words) as caught:
                ids(mine.batches(1), 12)
            assert shards[1].name in str(caught.value)
    with pytest.raises(PalError, match=r"000001.tar: it is missing, or has not the \d+ bytes"):
        find_shards(str(folder))
    shards[1].unlink()
    with pytest.raises(PalError, match=r"000001.tar: cannot be opened"):
        ids(mine.batches(1), 12)
    with pytest.raises(PalError, match=r"000001.tar: it is missing"):
        find_shards(str(folder))
    shards[1].write_bytes(kept)
    (folder / "more.tar").write_bytes(kept)  # not in the index
    assert len(find_shards(str(folder))) == len(shards)
    with (
        pytest.raises(PalError, match=r"it ends after 2 examples of 9"),
        ShardReader(Shard(str(tar(tmp_path / "x.tar", foreign(2))), 9)) as reader,
    ):
        reader.read(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"num_examples": 3}, "do not add up"),
        ({"shards": []}, "damaged"),
        ({"more": 1}, "unknown key 'more'"),
        ("name ../x.tar", "damaged"),
        ("twice name", "two shards have the same name"),
        ("twice content", "two shards have the same content"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_faults_of_an_index(tmp_path: Path, change: dict[str, Any] | str, words: str) -> None:
    folder = tmp_path / "shards"
    written(folder, 8)
    index = json.loads((folder / INDEX).read_text())
    if isinstance(change, dict):
        index |= change
    elif change.startswith("name"):
        index["shards"][0]["name"] = change.removeprefix("name ")
    elif change.startswith("twice"):
        key = {"name": "name", "content": "sha256"}[change.removeprefix("twice ")]
        index["shards"][1][key] = index["shards"][0][key]
    (folder / INDEX).write_text(change if isinstance(change, str) and change[0] in "{[" else json.dumps(index))
    with pytest.raises(PalError, match=words) as caught:
        find_shards(str(folder))
    assert INDEX in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_index_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "shards", 3)
    monkeypatch.setattr(shard_index, "MAX_INDEX_BYTES", 100)
    with pytest.raises(PalError, match=r"shards.json: over the limit of 100 bytes"):
        find_shards(str(tmp_path / "shards"))


def test_a_folder_may_look_like_a_pattern(tmp_path: Path) -> None:
    written(tmp_path / "a[1]", 3)
    assert sum(shard.num_examples for shard in find_shards(str(tmp_path / "a[1]"))) == 3


def test_places_without_shards(tmp_path: Path) -> None:
    for where, words in (
        ("none", "no such folder of shards"),
        ("", "no .tar here"),
        ("*.tar", "nothing found"),
        ("x.tar", "cannot be opened"),
    ):
        with pytest.raises(PalError, match=words):
            find_shards(str(tmp_path / where))
    with pytest.raises(PalError, match="nothing found"):
        find_shards("nosuchprotocol://x/*.tar")
