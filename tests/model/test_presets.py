"""Presets: the streams that a word stands for, and what does not fit one."""

from typing import Any

import pytest

from pal_audio.errors import PalError
from pal_audio.model import AudioConfig, ModelSpec, describe, preset
from pal_audio.model.presets import ENCODERS_OF, PRESETS, ROLES
from tests.tiny import TINY_ENCODER, TINY_ENCODERS, tiny_model


def routes(audio: dict[str, Any]) -> list[tuple[Any, str, str]]:
    return [(item["encoder"], item["connector"]["type"], item["integration"]["type"]) for item in audio["streams"]]


def test_each_encoder_of_pal_multi_has_its_own_way() -> None:
    audio = preset("pal-multi", lal={"layers": "from:2"})
    assert routes(audio) == [("speech", "mlp", "plits"), ("sound", "mlp", "lal"), ("language", "mlp", "lal")]
    assert {name: options["type"] for name, options in audio["encoders"].items()} == {
        "speech": "whisper", "sound": "sslam", "language": "clap",
    }  # fmt: skip
    assert all(options["frozen"] for options in audio["encoders"].values())
    assert [item["integration"].get("layers") for item in audio["streams"]] == [None, "from:2", "from:2"]


def test_lfst_reads_language_then_sound_by_plits_or_lal() -> None:
    assert routes(preset("lfst")) == [(["language", "sound"], "lfst", "plits")]
    assert routes(preset("lfst", lal={})) == [(["language", "sound"], "lfst", "lal")]
    turned = preset("lfst", encoders={"sound": TINY_ENCODER, "language": TINY_ENCODERS["language"]})
    assert routes(turned)[0][0] == ["language", "sound"]


def test_a_role_that_is_given_replaces_its_default_alone() -> None:
    audio = preset("pal-multi", encoders={"sound": TINY_ENCODER})
    assert audio["encoders"] == {**ROLES, "sound": TINY_ENCODER}
    assert TINY_ENCODER not in ROLES.values()


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ENCODERS_OF])
def test_presets_of_one_encoder_are_valid(name: str) -> None:
    assert AudioConfig.parse(preset(name, TINY_ENCODER)).streams[0].encoders == ("audio",)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"preset": "palmulti"}, "preset 'palmulti' is unknown; there are plits, lal, pal, flamingo, pal-multi, lfst"),
    ({"preset": "lal"}, "preset 'lal' takes one `encoder`; presets with `encoders` are pal-multi, lfst"),
    ({"preset": "lal", "encoders": {"audio": TINY_ENCODER}}, "takes one `encoder`"),
    ({"preset": "pal-multi", "encoder": TINY_ENCODER}, "has several encoders: write `encoders:` with any of speech, sound"),
    ({"preset": "lfst", "encoders": {"speech": TINY_ENCODER}}, "has encoders language, sound, none called 'speech'"),
    ({"preset": "pal-multi", "summary": {"type": "qformer"}}, "no part that `summary` could set"),
    ({"preset": "lfst", "flamingo": {}}, "no part that `flamingo` could set"),
    ({"preset": "lfst", "encoders": TINY_ENCODERS, "streams": []}, "give either `preset`"),
    (
        {"preset": "lfst", "encoders": {"sound": TINY_ENCODER, "language": TINY_ENCODER}, "connector": {"type": "mlp"}},
        "connector 'mlp' reads one encoder",
    ),
    (
        {"preset": "pal-multi", "encoders": TINY_ENCODERS, "connector": {"type": "lfst"}},
        "connector 'lfst' reads 2 encoders",
    ),
]


@pytest.mark.parametrize(("model", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_a_mistake_is_one_line(model: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        ModelSpec(**model).audio_config()
    assert "\n" not in str(caught.value)


def test_a_model_says_which_encoders_its_streams_read() -> None:
    model, _ = tiny_model("llama", "lfst")
    said = describe(model)
    assert said["streams"][0]["encoder"] == ["language", "sound"]
    assert {"encoder language", "encoder sound", "connector 0"} <= set(said["parameters"])
