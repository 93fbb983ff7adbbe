"""`pal data shard`: what it writes, what it refuses, and that a folder is whole or says that it is not."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from pal_audio import cli
from pal_audio.data import shard_writing
from pal_audio.data.manifest import Example, read_manifest
from pal_audio.data.shard_index import INDEX, find_shards
from pal_audio.data.shard_writing import write_shards
from pal_audio.errors import PalError
from tests.data.shard_cases import foreign, ids, line, manifest, sound, source, stream, tar


def members(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as file:
            for member in file:
                content = file.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    return found


def test_lines_and_bytes_are_those_of_the_manifest(tmp_path: Path) -> None:
    for number, name in enumerate(("a.FLAC", "b.wav", "c.weird")):
        (tmp_path / name).write_bytes(sound(number))
    parts = line("two", "a.FLAC", "b.wav", "a.FLAC", start_s=0.05, end_s=0.15) | {"task": "t", "meta": {"x": [1]}}
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, (parts, line("odd", "c.weird"), line("none")))))
    examples = read_manifest(tmp_path / "m.jsonl")
    index = write_shards(examples, tmp_path / "out", 2_000)
    assert index.num_examples == 3
    found = members(tmp_path / "out")
    by_id = {json.loads(content)["id"]: name for name, content in found.items() if name.endswith(".json")}
    key = by_id["two"].removesuffix(".json")
    assert (found[f"{key}.0.flac"], found[f"{key}.1.wav"]) == (sound(0), sound(1))
    written = Example.model_validate_json(found[f"{key}.json"])
    assert [part.path for part in written.audio] == [f"{key}.{field}" for field in ("0.flac", "1.wav", "0.flac")]
    assert {(part.start_s, part.end_s) for part in written.audio} == {(0.05, 0.15)}
    assert found[f"{by_id['odd'].removesuffix('.json')}.0.bin"] == sound(2)
    assert len(found) == 3 + 2 + 1, "a sound that comes twice lies there once"
    back = {example.id: example for batch in (next(stream(source(tmp_path / "out")).batches(3)),) for example in batch}
    for example in examples:
        for part, original in zip(back[example.id].audio, example.audio, strict=True):
            assert part.content == Path(original.path).read_bytes()
            part.path = original.path
        assert back[example.id].model_dump() == example.model_dump()


def test_the_index_says_what_is_there_and_bytes_are_repeatable(tmp_path: Path) -> None:
    examples = manifest(tmp_path / "sounds", 20)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_shards(examples, tmp_path / name, 15_000, seed)
    index = json.loads((tmp_path / "a" / INDEX).read_text())
    assert index["format"] == 1
    for entry in index["shards"]:
        content = (tmp_path / "a" / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert len(content) < 15_000 + 10_000 + 10_240, "the size, one example more, and padding"
    assert sum(entry["num_examples"] for entry in index["shards"]) == 20
    assert (tmp_path / "a" / INDEX).read_text() == (tmp_path / "b" / INDEX).read_text()
    dealt = [[json.loads(body)["id"] for name, body in members(tmp_path / x).items() if name.endswith("json")] for x in "ac"]
    assert sorted(dealt[0]) == sorted(dealt[1])
    assert dealt[0] != dealt[1] != [example.id for example in examples] != dealt[0]


def test_datasets_finds_the_same_files(tmp_path: Path) -> None:
    from datasets import DownloadManager
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    write_shards(manifest(tmp_path / "sounds", 4), tmp_path / "out")
    path = str(tmp_path / "out" / "000000.tar")
    found = list(WebDataset._get_pipeline_from_tar(path, DownloadManager().iter_archive(path)))
    ours = members(tmp_path / "out")
    assert [item["__key__"] for item in found] == [f"{number:08d}" for number in range(4)]
    assert all(item["0.flac"] == ours[f"{item['__key__']}.0.flac"] for item in found)
    assert {item["json"]["id"] for item in found} == {f"m-{number}" for number in range(4)}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m").mkdir()
    manifest(tmp_path / "sounds", 6)
    text = (tmp_path / "sounds" / "m.jsonl").read_text().replace('"path": "', '"path": "../sounds/')
    (tmp_path / "m" / "m.jsonl").write_text(text)
    command = ["data", "shard", str(tmp_path / "m" / "m.jsonl"), str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "leaves the manifest's folder" in capsys.readouterr().err
    command += ["--root", str(tmp_path / "sounds")]
    assert cli.main([*command, "--size-mb", "0.01"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}\n"
    num = len(find_shards(str(tmp_path / "out")))
    assert num > 1
    assert f"6 examples in {num} shards" in said.err
    assert cli.main(command) == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert cli.main([*command, "--overwrite"]) == 0
    assert len(find_shards(str(tmp_path / "out"))) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "000000.tar", INDEX, "notes.txt"}
    assert cli.main([*command[:4], "--root", str(tmp_path / "none")]) == 2


def test_a_folder_that_was_not_finished_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = manifest(tmp_path / "sounds", 12)
    out = tmp_path / "out"
    write_shards(examples, out, 10_000)
    content, calls = shard_writing._content, iter(range(7))

    def killed(path: str) -> bytes:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return content(path)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writing, "_content", killed)
        with pytest.raises(KeyboardInterrupt):
            write_shards(examples, out, 10_000, overwrite=True)
    assert list(out.glob("*.tar")), "some were written"
    with pytest.raises(PalError, match="these shards are not finished"):
        find_shards(str(out))
    with pytest.raises(PalError, match="holds shards that are not finished"):
        write_shards(examples, out, 10_000)
    write_shards(examples, out, 10_000, overwrite=True)
    assert len({name for (name,) in ids(stream(source(out)).batches(1), 12)}) == 12
    assert {path.suffix for path in out.iterdir()} == {".tar", ".json", ""}


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = manifest(tmp_path / "sounds", 3)
    (tmp_path / "theirs").mkdir()
    tar(tmp_path / "theirs" / "000000.tar", foreign(1))
    with pytest.raises(PalError, match=r"holds .tar files that `pal data shard` did not write"):
        write_shards(examples, tmp_path / "theirs", overwrite=True)
    assert (tmp_path / "theirs" / "000000.tar").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(PalError, match="is not a folder"):
        write_shards(examples, tmp_path / "file")
    with pytest.raises(PalError, match="no example"):
        write_shards([], tmp_path / "out")
    monkeypatch.setattr(shard_writing, "MAX_EXAMPLE_BYTES", 500)
    with pytest.raises(PalError, match=r"example 'm-[0-2]': over the limit"):
        write_shards(examples, tmp_path / "limited")
    Path(examples[1].audio[0].path).unlink()
    with pytest.raises(PalError, match=r"1 sound files are not there, the first is .*m1.flac"):
        write_shards(examples, tmp_path / "out")
    assert not (tmp_path / "out").exists()
