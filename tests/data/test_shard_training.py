"""Streamed examples where training meets them: a recipe's `data:`, and batches equal to those of the manifest."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from pal_audio.audio import AudioError
from pal_audio.config import parse_config
from pal_audio.data import ShardsConfig, ShardsSourceConfig, build, prepare
from pal_audio.data.collation import Collator
from pal_audio.data.encode import encode
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import Example, read_manifest
from pal_audio.data.shard_writing import write_shards
from pal_audio.errors import PalError
from tests.data.shard_cases import foreign, source, stream, tar, written
from tests.tiny import TINY_ENCODER, tiny_model
from tests.training.shrink import write_clips


def config(folder: Path, **changes: Any) -> ShardsConfig:
    train = [{"shards": folder / "a"}, {"shards": str(folder / "x-*.tar"), "weight": 2, "name": "open", "question": "what?"}]
    values = {"type": "shards", "train": train, "test": [folder / "t.jsonl"], "shuffle_buffer": 8, **changes}
    return parse_config(TypeAdapter(ShardsConfig), values, "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sets = tmp_path / "sets"
    write_shards(read_manifest(write_clips(sets, "a", 6)), sets / "a")
    tar(sets / "x-0.tar", foreign(3))
    tar(sets / "x-1.tar", foreign(2))
    write_clips(sets, "t", 2)
    return sets


def test_shards_are_found_weighted_and_split_by_source(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    data = prepare(config(folder), tmp_path / "out", lambda *done: seen.append(done))
    assert (list(data.streams), data.sources, seen) == (["a", "open"], {}, [(1, 2), (2, 2)])
    assert (data.num_examples(), data.num_examples(["open"]), len(data.test)) == (16, 10, 2)
    names = {example.id for batch in itertools.islice(data.stream(["a"], 3).batches(2), 3) for example in batch}
    assert names == {f"a-{number}" for number in range(6)}
    assert data.stream().shuffle_buffer == 8
    assert {example.answer for example in data.sample()} == {"a bell", "a dog", "sound 0", "sound 1", "sound 2"}
    assert (data.chance, data.chance_by_task) == (0.5, {"name": 0.5})
    assert not (tmp_path / "out").exists(), "shards are read where they are"
    half = prepare(config(folder, train=[{"shards": folder / "a", "weight": 0.5}]), tmp_path)
    assert half.num_examples() == 3


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": [tmp_path / "none"]}, r"data.train\[0\]: no such folder .*none; write it by `pal data shard`"),
        ({"train": [str(folder / "none*.tar")]}, "nothing found"),
        (
            {"train": [folder / "a", {"shards": str(folder / "a" / "*.tar"), "name": "b"}]},
            r"data.train\[1\]: .* belongs to 'a' already",
        ),
        ({"train": [{"shards": folder / "a", "weight": 0.01}]}, r"data.train\[0\]: weight 0.01 leaves none of 6"),
        ({"train": [str(folder / "x-*.tar")]}, "example '0000': .* give the source a `question`"),
        ({"test": ["none.jsonl"]}, r"data.test\[0\]: no such manifest none.jsonl; .*--set data.test.0=FILE"),
        ({"roots": [tmp_path / "none"]}, r"data.roots\[0\]: no such folder"),
    ]
    for changes, words in cases:
        with pytest.raises(PalError, match=words) as caught:
            prepare(config(folder, **changes), tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(PalError, match="type shards names what is there already"):
        build(config(folder), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": []}, "train"),
        ({"train": ["x/a", "y/a.tar"]}, "two sources are called 'a'"),
        ({"train": [{"shard": "a"}]}, "did you mean 'shards'"),
        ({"shuffle_bufer": 3}, "did you mean 'shuffle_buffer'"),
        ({"shuffle_buffer": 0}, "shuffle_buffer"),
    ],
)
def test_configuration_faults_are_one_clear_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        config(tmp_path, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shards", "title"),
    [("x/a", "a"), ("x/a.tar", "a"), ("hf://datasets/u/set/*.tar", "set"), ("a/x-*.tar", "a"), ("*.tar", "*"), ("a/", "a")],
)
def test_a_source_is_named_by_its_place(shards: str, title: str) -> None:
    assert ShardsSourceConfig(shards=shards).title == title


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_streamed_batch_is_that_of_the_manifest(tmp_path: Path) -> None:
    originals = {example.id: example for example in written(tmp_path / "shards", 6)}
    _, processor = tiny_model("llama", "pal")
    collator = Collator(processor)
    batch = next(stream(source(tmp_path / "shards")).batches(4))
    direct = [originals[example.id] for example in batch]
    assert same(collator.training_batch(batch), Collator(processor).training_batch(direct))
    assert same(collator.prompt_batch(batch, muted=True), Collator(processor).prompt_batch(direct, muted=True))
    assert not collator._clips, "features of a stream are not kept"


def test_sound_that_does_not_decode_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", [("1.flac", b"no sound"), ("1.txt", b"a bell")])
    _, processor = tiny_model("llama", "pal")
    (example,) = next(stream(source(tmp_path / "x.tar")).batches(1))
    with pytest.raises(AudioError, match=r"x.tar/1.flac: nothing in it decodes"):
        Collator(processor).training_batch([example])


def test_cached_frames_are_found_by_streamed_sound(tmp_path: Path) -> None:
    originals = written(tmp_path / "shards", 3)
    model, _ = tiny_model("llama", "lal", encoder=TINY_ENCODER | {"frozen": True})
    encode([part for example in originals for part in example.audio], model.encoders, tmp_path / "frames")
    cache = FrameCache(tmp_path / "frames", model.encoders)
    by_id: dict[str, Example] = {example.id: example for example in originals}
    for example in next(stream(source(tmp_path / "shards")).batches(3)):
        (streamed,), (direct,) = cache.read(example.audio[0]).values(), cache.read(by_id[example.id].audio[0]).values()
        assert torch.equal(streamed.layers[0], direct.layers[0])
    assert len(cache._hashes._of_now) == 3, "of files, not of streamed sound"
