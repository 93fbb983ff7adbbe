"""Which sound stands in for an item's own."""

from pathlib import Path

from pal_audio.data.importers.base import asked
from pal_audio.evaluation.conditions import Donors, clip_key, noise_seed
from pal_audio.evaluation.items import Item


def item(name: str, source: str = "") -> Item:
    made = Item.of(asked(name, [Path(f"/sets/{name}.wav")], "What?", "a", "x"))
    return made.model_copy(update={"source": source or name})


def test_no_clip_keeps_its_own_source_and_each_is_given_once() -> None:
    items = [item(f"c{number}") for number in range(30)]
    donors = Donors(items)
    first = [clip_key(next(donors.of(one.clips[0]))) for one in items]
    assert sorted(first) == sorted(clip_key(one.clips[0]) for one in items)
    assert all(key != clip_key(one.clips[0]) for key, one in zip(first, items, strict=True))


def test_takes_of_one_recording_do_not_stand_in_for_each_other() -> None:
    items = [item(f"c{number}", f"recording {number // 10}") for number in range(30)]
    source = {clip_key(one.clips[0]): one.source for one in items}
    donors = Donors(items)
    for one in items:
        others = [source[clip_key(clip)] for clip in donors.of(one.clips[0])]
        assert len(others) == 20
        assert one.source not in others


def test_one_source_cannot_be_shuffled() -> None:
    assert not Donors([item("a", "same"), item("b", "same")]).possible
    assert Donors([item("a"), item("b")]).possible


def test_noise_does_not_depend_on_the_folder() -> None:
    here, there = item("a").clips[0], [part.model_copy(update={"path": "/elsewhere/a.wav"}) for part in item("a").clips[0]]
    assert noise_seed(here) == noise_seed(there)
    assert noise_seed(here) != noise_seed(item("b").clips[0])
