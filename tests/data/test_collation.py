"""Rows of text are kept, and are those that the processor makes anew."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from pal_audio.data import collation
from pal_audio.data.collation import Collator
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.model import PalProcessor
from tests.tiny import RATE_HZ, noise, tiny_model


def turn(parts: list[Any], answer: str) -> list[Message]:
    return [Message(role="user", content=parts), Message(role="assistant", content=answer)]


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    """The same words about clips of two lengths, at two places, of two turns, without sound, and with other words."""
    clips = []
    for number, seconds in enumerate((0.4, 1.7)):
        soundfile.write(tmp_path / f"{number}.wav", noise(seconds, number), RATE_HZ)
        clips.append(AudioPart(path=str(tmp_path / f"{number}.wav")))
    question = TextPart(text="what sound is this?")
    turns = [
        turn([clips[0], question], "a bell"),
        turn([clips[1], question], "a bell"),
        turn([question, clips[1]], "a bell"),
        turn([clips[1], question, clips[0]], "a bell"),
        [*turn([clips[0], question], "a bell"), *turn([question], "a dog")],
        turn([question], "a bell"),
        turn([clips[0], question], "a dog barks twice"),
    ]
    return [Example(id=str(number), messages=messages) for number, messages in enumerate(turns)]


def anew(processor: PalProcessor, examples: list[Example]) -> dict[str, Any]:
    return dict(processor.apply_chat_template([_written(example) for example in examples], return_labels=True))


def _written(example: Example) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": [part.model_dump(exclude_none=True) for part in message.parts]}
        for message in example.messages
    ]


@pytest.mark.parametrize("arm", ["plits", "pal"])
def test_kept_rows_are_those_made_anew(arm: str, examples: list[Example]) -> None:
    _, processor = tiny_model("llama", arm)
    collator = Collator(processor)
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 1, 0], [5], [4, 3]):
        chosen = [examples[number] for number in order]
        made, expected = collator.training_batch(chosen), anew(processor, chosen)
        assert made.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(made[key], value), (order, key)
            assert made[key].dtype == value.dtype
    assert [collator.num_tokens(example) for example in examples] == [
        int(anew(processor, [example])["attention_mask"].sum()) for example in examples
    ]


@pytest.mark.parametrize("arm", ["plits", "pal"])
def test_one_row_of_words_serves_clips_of_every_length(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = []
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", noise(0.2 + 0.5 * number, number), RATE_HZ)
        clips.append(AudioPart(path=str(tmp_path / f"{number}.wav")))
    words = TextPart(text="what sound is this?")
    examples = [
        Example(id=str(number), messages=turn([clips[number], words, clips[5 - number]], "a bell")) for number in range(6)
    ]
    _, processor = tiny_model("llama", arm)
    expected, collator = anew(processor, examples), Collator(processor)
    collator.training_batch(examples[:1])
    monkeypatch.setattr(type(processor), "apply_chat_template", lambda *_, **__: pytest.fail("written again"))
    made = collator.training_batch(examples)
    assert all(torch.equal(made[key], expected[key]) for key in ("input_ids", "labels", "attention_mask"))


def test_rows_are_kept_up_to_a_limit(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = tiny_model("llama", "pal")
    rendered = []
    whole = type(processor).apply_chat_template

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        rendered.append(1)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(type(processor), "apply_chat_template", counted)
    collator = Collator(processor)
    for _ in range(3):
        collator.training_batch(examples)
    assert len(rendered) == len(examples) - 1  # with `pal` each clip takes two slots, so two rows are the same
    monkeypatch.setattr(collation, "_KEPT_TOKENS", 0)
    forgetful = Collator(processor)
    for _ in range(2):
        forgetful.training_batch(examples)
    assert len(rendered) == len(examples) - 1 + 2 * len(examples)
