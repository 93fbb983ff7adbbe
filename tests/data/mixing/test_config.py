"""What a recipe may say of a mix, and what is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pal_audio.config import parse_config
from pal_audio.data import Composer, MixConfig, read_catalogue
from pal_audio.errors import PalError

from .sets import SOURCES, make_all, mix

ADAPTER = TypeAdapter(MixConfig)


def parsed(**changes: Any) -> MixConfig:
    values = {"type": "mix", "sources": [{"type": "procedural"}], "tasks": {"classify": 1}, **changes}
    return parse_config(ADAPTER, values, "data")


def test_numbers_stand_for_ranges_and_weights_and_tasks_change_their_scene() -> None:
    tasks = {"a": {"kind": "first", "scene": {"seconds": 20, "overlap": {"share": 0.4}}}, "classify": 2}
    config = parsed(tasks=tasks, scene={"gain_db": -3, "seconds": [5, 6]})
    assert config.active_tasks == {"a": 1, "classify": 2}
    scene = config.scene_of(config.tasks["a"])
    assert (scene.gain_db, scene.seconds, scene.num_events) == ((-3, -3), (20, 20), (1, 4))
    assert scene.overlap is not None
    assert scene.overlap.share == (0.4, 0.4)
    assert config.scene_of(config.tasks["classify"]).seconds == (5, 6)
    again = MixConfig.model_validate_json(config.model_dump_json())
    assert again.scene_of(again.tasks["a"]) == scene


def test_a_task_without_weight_is_not_looked_at() -> None:
    assert parsed(tasks={"classify": 1, "pitch": 0, "my-own": 0}).active_tasks == {"classify": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": []}, "did you mean 'sources'"),
        ({"sources": []}, "sources"),
        ({"sources": [{"type": "esc11"}]}, "type must be procedural, table, manifest or one of csv, esc10"),
        ({"sources": [{"type": "esc10", "rot": "x"}]}, "did you mean 'root'"),
        ({"sources": [{"type": "manifest", "train": "x"}]}, "name a `test` manifest too, or a `split`"),
        ({"sources": [{"type": "esc10", "root": "x", "split": {"train": [1]}}]}, "both for `train` and for `test`"),
        ({"sources": [{"type": "esc10", "root": "x", "split": {"by": "fold"}}]}, "which values of 'fold' are `train`"),
        ({"sources": [{"type": "esc10", "root": "x", "split": {"train": [1], "test": ["1"]}}]}, "'1' is both in"),
        ({"sources": [{"type": "esc10", "root": "x", "split": {"test_share": 0.1, "by": "fold"}}]}, "takes no `by`"),
        ({"tasks": {}}, "tasks"),
        ({"tasks": {"classify": 0}}, "must be positive"),
        ({"tasks": {"clasify": 1}}, "tasks.clasify: no kind of task is called 'clasify'; did you mean 'classify'"),
        ({"tasks": {"pitch": 1}}, "tasks.pitch: no source has the category 'instrument'; there are sound"),
        ({"tasks": {"first": {"scene": {"num_evnts": 2}}}}, "tasks.first.scene: .*did you mean 'num_events'"),
        (
            {"tasks": {"first": {"scene": {"num_events": 1}}}},
            "tasks.first: it needs 2 sounds in a scene, and num_events allows 1",
        ),
        (
            {"scene": {"num_events": [6, 8], "seconds": 5}, "tasks": {"caption": 1}},
            "tasks.caption: 8 events of 0.6 s .* take 6.40 s, more than the 5 s",
        ),
        ({"scene": {"trim": 0.5}, "tasks": {"count": 1}}, "tasks.count: scene.trim: the length of a cut scene would tell"),
        ({"scene": {"trim": 1.5}}, "trim"),
        ({"scene": {"num_events": [4, 2]}}, "lowest and highest"),
        ({"scene": {"num_events": [1, 50]}}, "num_events: 1 to 50 is out of range"),
        ({"scene": {"gain_db": [-90, 0]}}, "gain_db"),
        ({"scene": {"reverb": {"rt60_s": [0.01, 1]}}}, "rt60_s"),
        ({"scene": {"overlap": {"share": [0.1, 1.0]}}}, "share"),
        ({"scene": {"background": {"sound": "pnik"}}}, "no source has the category 'pnik'; background: white, pink"),
        ({"scene": {"background": {"sound": "sound"}}}, "would be one of the sounds that are asked about"),
        ({"tasks": {"background": {"categories": ["sound"]}}}, "give it `scene: {background"),
        ({"tasks": {"transcribe": {"categories": ["sound", "sound"]}}}, "takes one category"),
        ({"sampling_rate_hz": 8000}, "procedural sounds need 16000"),
    ],
)
def test_what_is_wrong_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        parsed(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": {"classify": 1}, "sources": [SOURCES[0] | {"split": {"by": "category", "train": ["dog"], "test": ["rain"]}}]},
         "data.tasks.classify: no train clip for label 'rain' of category 'sound'"),
        ({"tasks": {"presence": {"scene": {"num_events": 5}}}}, "6 different labels are needed; sound: church bells, dog"),
        ({"tasks": {"pitch": {"scene": {"interval": 40}}}}, "has no two train notes that lie 40 to 40 semitones apart"),
        ({"tasks": {"pitch": 1}, "sources": [{k: v for k, v in SOURCES[2].items() if k != "pitch"}]}, "clips without a pitch"),
        ({"tasks": {"transcribe": 1}, "sources": [SOURCES[1] | {"hold_out": {"index": [5, 6]}}]}, "no train clip for label"),
        ({"tasks": {"caption": 1}, "sources": [SOURCES[0] | {"clauses": {"dog": "rain falls"}}]}, "both read 'rain falls'"),
        ({"tasks": {"classify": {"categories": ["sound", "x"]}}, "sources": [SOURCES[0], {**SOURCES[0], "category": "x"}]},
         "is of both categories 'sound' and 'x'"),
    ],
)  # fmt: skip
def test_what_the_clips_do_not_allow_is_one_line(root: Path, changes: dict[str, Any], words: str) -> None:
    config = mix(root, **changes)
    with pytest.raises(PalError, match=words) as caught:
        Composer(config, read_catalogue(config))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


def test_digits_that_do_not_fit_are_said(root: Path) -> None:
    config = mix(root, tasks={"transcribe": {"scene": {"num_digits": 10, "seconds": 1}}})
    with pytest.raises(PalError, match=r"data.tasks.transcribe: train item 0: its sounds do not fit into 1 s; raise seconds"):
        Composer(config, read_catalogue(config)).item("train", 0)
