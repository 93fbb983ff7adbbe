"""Streams: the batch of a step is a function of (sources, seed, step), whoever asks, and memory holds one buffer."""

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pal_audio import audio
from pal_audio.data import shards
from pal_audio.data.manifest import Example
from pal_audio.data.shard_index import find_shards
from pal_audio.data.shard_reader import ShardReader
from pal_audio.data.shard_source import ShardSource, weighted
from pal_audio.data.shard_writing import write_shards
from pal_audio.data.shards import ShardStream
from pal_audio.errors import PalError
from tests.data.shard_cases import foreign, ids, line, manifest, source, stream, tar, written

NUM = 41


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 examples in several shards."""
    out = tmp_path_factory.mktemp("set") / "shards"
    written(out, NUM)
    assert len(find_shards(str(out))) > 4
    return out


def test_every_epoch_holds_every_example_once_in_another_order(folder: Path) -> None:
    flat = list(itertools.chain(*ids(stream(source(folder)).batches(1), 3 * NUM)))
    epochs = [flat[number * NUM : (number + 1) * NUM] for number in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == NUM for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert ids(stream(source(folder), seed=1).batches(1), NUM) != ids(stream(source(folder)).batches(1), NUM)
    batches = ids(stream(source(folder)).batches(4), NUM)  # four epochs; a batch may lie in two
    assert {len(batch) for batch in batches} == {4}
    assert set(Counter(itertools.chain(*batches)).values()) == {4}


@given(batch_size=st.integers(1, 9), blocks=st.floats(1, 6), first=st.integers(0, 60), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resumed_is_uninterrupted(folder: Path, batch_size: int, blocks: float, first: int, seed: int) -> None:
    mine = stream(source(folder), seed=seed, shuffle_buffer=int(batch_size * blocks))
    straight = ids(mine.batches(batch_size), first + 8)
    anew = stream(source(folder), seed=seed, shuffle_buffer=int(batch_size * blocks))
    assert ids(anew.batches(batch_size, first), 8) == straight[first:]


def test_fewer_examples_than_a_batch_wrap_around(tmp_path: Path) -> None:
    written(tmp_path / "shards", 3)
    mine = stream(source(tmp_path / "shards"))
    batches = ids(mine.batches(8), 6)
    assert set(Counter(itertools.chain(*batches)).values()) == {16}
    assert ids(mine.batches(8, 4), 2) == batches[4:]


def test_nothing_is_decoded_and_resuming_reads_no_shard_from_its_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    contents: list[str] = []
    first, content = ShardReader.__init__, ShardReader._content
    monkeypatch.setattr(
        ShardReader, "__init__", lambda self, shard, verify=True: [opened.append(shard.path), first(self, shard)][1]
    )
    monkeypatch.setattr(ShardReader, "_content", lambda self, member: [contents.append(member.name), content(self, member)][1])
    monkeypatch.setattr(audio.loading, "decode_soundfile", None)
    next(stream(source(folder), shuffle_buffer=4).batches(2, 3 * NUM // 2 - 3))
    assert len(opened) <= 2, "the shards of the block, not those before it"
    assert len(contents) == 2 * (4 + 2), "JSON and sound of the block, and of what already went out of it"


def test_each_shard_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    compute = ShardReader._hash
    monkeypatch.setattr(ShardReader, "_hash", lambda self: [hashed.append(self.shard.path), compute(self)][1])
    ids(stream(source(folder)).batches(4), 3 * NUM // 4)
    assert sorted(hashed) == [shard.path for shard in find_shards(str(folder))]


class Batches(torch.utils.data.IterableDataset):
    """Batches by a loader's workers, each every n-th."""

    def __init__(self, mine: ShardStream) -> None:
        self.mine = mine

    def __iter__(self) -> Iterator[list[str]]:
        info = torch.utils.data.get_worker_info()
        for batch in itertools.islice(self.mine.batches(4), info.id, 20, info.num_workers):
            yield [example.id for example in batch]


def test_one_worker_is_two_workers(folder: Path) -> None:
    mine = stream(source(folder))
    for workers in (1, 2):
        loader = torch.utils.data.DataLoader(Batches(mine), batch_size=None, num_workers=workers)
        assert list(loader) == ids(mine.batches(4), 20)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(folder: Path, world_size: int) -> None:
    mine = stream(source(folder))
    parts = [ids(mine.split(rank, world_size).batches(6, 5), 10) for rank in range(world_size)]
    for step, whole in enumerate(ids(mine.batches(6, 5), 10)):
        assert sorted(itertools.chain(*(part[step] for part in parts))) == sorted(whole)
        assert {len(part[step]) for part in parts} == {6 // world_size}


def test_sizes_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(PalError, match="shuffle_buffer 12 is smaller than a batch of 13"):
        next(stream(source(folder)).batches(13))
    with pytest.raises(PalError, match="batch of 5 cannot be shared by 2 processes"):
        next(stream(source(folder)).split(0, 2).batches(5))


def test_memory_holds_one_buffer(tmp_path: Path) -> None:
    size, num, buffer = 100_000, 40, 8
    lines = []
    for number in range(num):
        (tmp_path / f"{number}.wav").write_bytes(np.random.default_rng(number).bytes(size))
        lines.append(Example.model_validate(line(str(number), str(tmp_path / f"{number}.wav"))))
    write_shards(lines, tmp_path / "shards", 10 * size)
    mine = stream(source(tmp_path / "shards"), shuffle_buffer=buffer)
    batches = mine.batches(2)
    next(batches)
    tracemalloc.start()
    for _ in range(num):
        batch = next(batches)
        del batch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # a batch of ours besides the buffer, and the file that is being read twice (in pieces and joined)
    assert peak < (buffer + 2 + 2) * size


def lengths(batch: list[Example]) -> list[float]:
    return [audio.stated_seconds(example.audio[0].content or b"") or 0.0 for example in batch]


def test_batches_hold_clips_of_like_length(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread() -> float:
        return float(
            np.mean(
                [np.ptp(lengths(batch)) for batch in itertools.islice(stream(source(folder), shuffle_buffer=40).batches(4), 30)]
            )
        )

    grouped = spread()
    monkeypatch.setattr(shards, "stated_seconds", lambda content: 0.0)
    assert grouped < 0.4 * spread()


def test_a_stretch_counts_by_its_own_length() -> None:
    example = Example.model_validate(line("x", "a.flac", start_s=1.0, end_s=3.5) | {})
    assert shards._seconds(example) == 2.5
    example.audio[0].end_s = None
    example.audio[0].attach(b"\0" * 48_000)  # nothing that libsndfile knows
    assert shards._seconds(example) == 2.0


def test_sources_are_weighted_and_spread_over_the_epoch(tmp_path: Path) -> None:
    written(tmp_path / "a", 10, name="a")
    written(tmp_path / "b", 8, name="b")
    mine = stream(source(tmp_path / "a"), source(tmp_path / "b", weight=2.25))
    assert mine.num_examples == 10 + 18
    flat = list(itertools.chain(*ids(mine.batches(2), 28)))
    for epoch in (flat[:28], flat[28:]):
        counts = Counter(epoch)
        assert sorted(counts[f"b-{number}"] for number in range(8)) == [2] * 6 + [3] * 2
        assert all(counts[f"a-{number}"] == 1 for number in range(10))
        quarters = [sum(name.startswith("a") for name in epoch[at : at + 14]) for at in (0, 14)]
        assert min(quarters) >= 4, "each source is in every part of an epoch"
    assert Counter(flat[:28]) == Counter(flat[28:]), "always the same choice"
    found = find_shards(str(tmp_path / "b"))
    with pytest.raises(PalError, match="leaves none of 8"):
        weighted(found, 0.01, np.random.default_rng(0))


def test_the_checksum_tells_other_shards(tmp_path: Path) -> None:
    examples = manifest(tmp_path / "sounds", 8)
    for name, chosen, seed in (("a", examples, 0), ("b", examples, 0), ("c", examples, 1), ("d", examples[1:], 0)):
        write_shards(chosen, tmp_path / name, 8_000, seed)
    tar(tmp_path / "e.tar", foreign(3))
    same, moved, *others = (source(tmp_path / name).checksum for name in ("a", "b", "c", "d", "e.tar"))
    assert same == moved
    others += [source(tmp_path / "a", weight=2).checksum, source(tmp_path / "a", question=None).checksum]
    tar(tmp_path / "e.tar", [*foreign(3), ("0002.mp3", b"x" * 20_000)])  # as many examples
    others.append(source(tmp_path / "e.tar").checksum)
    found = find_shards(str(tmp_path / "a"))
    others += [ShardSource("a", weighted(found, 1.5, np.random.default_rng(seed))).checksum for seed in range(2)]
    assert len({same, *others}) == 9


def test_examples_without_an_answer_are_refused(tmp_path: Path) -> None:
    examples = manifest(tmp_path, 1)
    examples[0].messages.pop()
    write_shards(examples, tmp_path / "shards")
    with pytest.raises(PalError, match=r"000000.tar, example '00000000': no answer"):
        next(stream(source(tmp_path / "shards")).batches(1))


def test_shards_of_others_in_other_file_systems(tmp_path: Path) -> None:
    import fsspec

    written(tmp_path / "ours", 6)
    tar(tmp_path / "x-0.tar", foreign(3))
    tar(tmp_path / "x-1.tar", foreign(3))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "ours"), "/shardtest/ours", recursive=True)
    memory.put(str(tmp_path / "x-0.tar"), "/shardtest/x-0.tar")
    memory.put(str(tmp_path / "x-1.tar"), "/shardtest/x-1.tar")
    try:
        near, far = stream(source(tmp_path / "ours")), stream(source("memory://shardtest/ours"))
        assert ids(far.batches(2), 9) == ids(near.batches(2), 9)
        names = set(itertools.chain(*ids(stream(source("memory://shardtest/x-*.tar")).batches(1), 6)))
        assert names == {f"x-{shard}/{key:04d}" for shard in range(2) for key in range(3)}, "equal keys are told apart"
        with pytest.raises(PalError, match=r"memory://shardtest/none/\*.tar: nothing found"):
            find_shards("memory://shardtest/none")
    finally:
        memory.rm("/shardtest", recursive=True)


def test_the_head_is_read_without_sound(folder: Path) -> None:
    head = source(folder).head(7)
    assert len({example.id for example in head}) == 7
    assert head[0].question == "what sound is this?"
    assert head[0].audio[0].content == b""
    assert len(source(folder).head(1000)) == NUM
