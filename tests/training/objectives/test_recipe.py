"""Recipes of every objective: what does not go together is one line that names the mend."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pal_audio.errors import PalError
from pal_audio.training.batches import Budget
from pal_audio.training.recipe import Recipe, Stage, load_recipe
from tests.training.objectives.made import ENCODER, LLM

TAGS = {"objective": "tags", "train": {"encoder": 1e-3}, "steps": 1}
CTC = TAGS | {"objective": "ctc"}
TEXT = {"objective": "text", "train": {"llm": 1e-3}, "steps": 1}
ANSWER = {"train": {"connector": 1e-3}, "steps": 1}
TWO = {"encoders": {"ear": ENCODER, "eye": ENCODER}}
DATA = {"type": "manifests", "train": ["a.jsonl", {"text": "b.txt"}], "test": ["c.jsonl"]}
SOUND = {"sources": ["a"]}


def read(folder: Path, model: dict[str, Any], *stages: dict[str, Any], **more: Any) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump({"name": "r", "model": model, "data": DATA, "stages": list(stages), **more}))
    return load_recipe(path)


@pytest.mark.parametrize(
    ("model", "stage", "words"),
    [
        (
            {"encoder": ENCODER},
            TAGS | SOUND | {"symbols": "words"},
            "`symbols` belongs to objective ctc or events-ctc, not tags; take it out",
        ),
        ({"encoder": ENCODER}, CTC | SOUND | {"pooling": "mean"}, "`pooling` belongs to objective tags, not ctc"),
        ({"encoder": ENCODER}, TAGS | SOUND | {"max_tokens": 9}, "`max_tokens` belongs to objective text"),
        (
            {"encoder": ENCODER},
            TAGS | SOUND | {"batch_text_tokens": 9},
            "`batch_text_tokens` belongs to objective answer or text",
        ),
        ({"llm": LLM}, TEXT | {"packing": False}, "`packing` belongs to objective answer, not text"),
        ({"encoder": ENCODER}, TAGS | SOUND | {"compile": True}, "`compile` belongs to objective answer or text"),
        ({"llm": LLM}, TEXT | {"task": "a"}, "`task` belongs to objective ctc or tags"),
        ({"llm": LLM}, TEXT | {"batch_audio_s": 9}, "`batch_audio_s` belongs to objective answer or ctc or tags"),
        ({"llm": LLM}, TEXT | {"train": {"encoder": 1e-3}}, "objective text cannot train 'encoder'; it trains llm, llm.att"),
        ({"encoder": ENCODER}, TAGS | SOUND | {"train": {"head": 1e-3}}, "trains an encoder; name its rate"),
        (
            {"encoder": ENCODER},
            TAGS | SOUND | {"train": {"encoder": 1e-3, "llm": 1}},
            "cannot train 'llm'; it trains encoder, head",
        ),
        (
            {"encoder": ENCODER, "preset": "lal", "llm": LLM},
            ANSWER | SOUND | {"train": {"head": 1}},
            "answer cannot train 'head'",
        ),
        ({"llm": LLM}, ANSWER | SOUND, "objective answer needs a whole model: give model.preset"),
        ({"encoder": ENCODER, "preset": "lal"}, ANSWER | SOUND, "objective answer needs a language model: name model.llm"),
        ({"encoder": ENCODER}, TEXT, "objective text needs a language model: name model.llm"),
        ({"llm": LLM}, TAGS | SOUND, "objective tags needs an encoder: name model.encoder"),
        (TWO, TAGS | SOUND, "trains one encoder: write `encoder:` and one of ear, eye"),
        (TWO, TAGS | SOUND | {"encoder": "nose"}, "no encoder is called 'nose'; there are ear, eye"),
        ({"encoder": ENCODER}, TAGS, "source 'b' is plain text, it has no tags; name the others in its `sources`"),
        ({"encoder": ENCODER}, TAGS | {"objective": "tag"}, "'answer', 'text', 'ctc', 'tags', 'events' or 'events-ctc'"),
        ({"encoder": {"type": "conv", "channel": [4]}}, TAGS | SOUND, "did you mean 'channels'"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, model: dict[str, Any], stage: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        read(tmp_path, model, stage)
    assert "\n" not in str(caught.value)


def test_cached_frames_are_of_frozen_encoders(tmp_path: Path) -> None:
    with pytest.raises(PalError, match="frame_cache holds frames of frozen ones; take one of them out"):
        read(tmp_path, {"encoder": ENCODER}, TAGS | SOUND, frame_cache="frames")


def test_shards_are_streamed_for_answers_alone(tmp_path: Path) -> None:
    data = {"type": "shards", "train": ["a"], "test": ["c.jsonl"]}
    with pytest.raises(PalError, match="objective tags has to see all examples first; use type: manifests"):
        read(tmp_path, {"encoder": ENCODER}, TAGS, data=data)


def test_what_a_stage_does_not_need_may_be_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, {"llm": LLM}, TEXT).model.encoder_configs() == {}
    assert list(read(tmp_path, {"encoder": ENCODER}, TAGS | SOUND).model.encoder_configs()) == ["audio"]
    assert list(read(tmp_path, TWO, TAGS | SOUND | {"encoder": "eye"}).model.encoder_configs()) == ["ear", "eye"]
    again = read(tmp_path, TWO, CTC | SOUND | {"encoder": "eye"})
    assert Recipe.model_validate(again.model_dump(mode="json")) == again  # as a run's folder holds it


def test_a_text_batch_counts_its_padding() -> None:
    assert Stage(**TEXT, batch_text_tokens=64).limit == Budget(None, 64, packed=False)  # type: ignore[arg-type]
    assert Stage(**ANSWER, batch_text_tokens=64).limit == Budget(None, 64)  # type: ignore[arg-type]
