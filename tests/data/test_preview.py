"""The preview shows exactly the tokens that training supervises."""

from pathlib import Path

import soundfile

from pal_audio.data import AudioPart, Example, Message, TextPart
from pal_audio.data.preview import preview
from tests.tiny import RATE_HZ, noise, tiny_model


def test_the_answers_of_all_turns_and_nothing_else(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0.5), RATE_HZ)
    _, processor = tiny_model()
    clip = AudioPart(path=str(tmp_path / "a.wav"))
    messages = [
        Message(role="user", content=[clip, TextPart(text="what sound is this?")]),
        Message(role="assistant", content="a bell"),
        Message(role="user", content="and this?"),
        Message(role="assistant", content="a dog"),
    ]
    shown = preview(processor, Example(id="x", messages=messages))
    assert shown.id == "x"
    assert len(shown.supervised) < shown.num_tokens
    said = "".join(shown.supervised)
    assert said.index("a bell") < said.index("a dog")
    assert "this" not in said
