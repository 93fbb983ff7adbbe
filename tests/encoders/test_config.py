"""What a user may get wrong is said in one line."""

from pathlib import Path
from typing import Any

import pytest

from encoders.cases import AST, CASES, CLAP, CLAP_MEL, WAVE, WHISPER, wave
from pal_audio import encoders
from pal_audio.errors import PalError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"type": "conv", "channel": [8]}, "unknown key 'channel'; did you mean 'channels'"),
    ({"type": "whisper", "config": WHISPER, "window_s": 3}, "unknown key 'window_s'"),
    ({"type": "conf"}, "conf"),
    ({}, "type"),
    ({"type": "conv", "channels": [8, 8]}, "give each block one of both"),
    ({"type": "conv", "num_mels": 40}, "num_mels 40 is no multiple of 16"),
    ({"type": "conv", "num_heads": 3}, "no multiple of num_heads 3"),
    ({"type": "conv", "hop_samples": 600}, "sound would be lost"),
    ({"type": "conv", "num_layers": 0, "encoder_layers": "per_llm_layer"}, "names no layer"),
    ({"type": "conv", "dropout": 1.5}, "dropout"),
    ({"type": "sslam", "num_layer": 3}, "did you mean 'num_layers'"),
    ({"type": "sslam", "image_frames": 1000}, "image_frames 1000 is no multiple of 16"),
    ({"type": "sslam", "image_frames": 16_000}, "up to 12288"),
    ({"type": "sslam", "num_mels": 40}, "num_mels 40 is no multiple of patch_size 16"),
    ({"type": "sslam", "num_heads": 7}, "no multiple of both num_heads 7 and 4"),
    ({"type": "clap"}, "one of checkpoint .* and config"),
    ({"type": "clap", "config": CLAP | {"depth": [1, 2]}}, "no field 'depth'; did you mean 'depths'"),
    ({"type": "clap", "config": AST}, "cannot be made of model type 'audio-spectrogram-transformer'"),
    ({"type": "clap", "config": CLAP, "preprocessor": CLAP_MEL | {"feature_size": 64}}, "feature_size 64 does not fit"),
    ({"type": "clap", "config": CLAP, "preprocessor": CLAP_MEL | {"padding": "zero"}}, "padding 'zero' is unknown; known"),
    ({"type": "clap", "config": CLAP, "preprocessor": CLAP_MEL | {"truncation": "no"}}, "truncation 'no' is unknown"),
    ({"type": "clap", "config": CLAP, "preprocessor": CLAP_MEL | {"max_length_s": 2}}, "401 mel frames, the encoder reads 256"),
    ({"type": "clap", "config": CLAP | {"num_mel_bins": 24}, "preprocessor": {}}, "cannot be cut by num_mel_bins 24"),
    ({"type": "whisper"}, "one of checkpoint .* and config"),
    ({"type": "whisper", "config": WHISPER, "checkpoint": "x"}, "one of checkpoint .* and config"),
    ({"type": "transformers", "config": AST | {"encoder_layers": 3}}, "no field 'encoder_layers'"),
    ({"type": "transformers", "config": AST | {"hiden_size": 3}, "encoder_layers": [1]}, "did you mean 'hidden_size'"),
    ({"type": "transformers", "config": AST | {"hidden_size": "x"}}, "hidden_size"),
    ({"type": "transformers", "config": WAVE}, "model_type None is unknown"),
    ({"type": "transformers", "config": {"model_type": "clap"}}, "'clap' is not supported; use type: clap"),
    ({"type": "transformers", "config": {"model_type": "llama"}}, "'llama' is not supported; supported are audio-spectrogram"),
    ({"type": "whisper", "config": AST}, "cannot be made of model type 'audio-spectrogram-transformer'"),
    (wave("wav2vec2", WAVE, add_adapter=True), "add_adapter is not supported"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message[:24] for _, message in WRONG])
def test_mistakes_are_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PalError, match=message) as caught:
        encoders.parse(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "clap", "config": WHISPER | {"model_type": "whisper"}}, "of model type 'whisper'; use type: whisper$"),
        ({"type": "whisper", "config": CLAP | {"model_type": "clap_audio_model"}}, "use type: clap$"),
        ({"type": "whisper", "config": AST}, "use type: transformers$"),
        ({"type": "whisper", "config": {"model_type": "llama"}}, "no type of encoder reads it$"),
        ({"type": "transformers", "config": WHISPER | {"model_type": "whisper"}}, "is not supported; use type: whisper$"),
    ],
)
def test_the_type_that_reads_a_model_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PalError, match=message):
        encoders.parse(values)


@pytest.mark.parametrize("kind", ["whisper", "clap", "ast"])
def test_a_layer_that_a_checkpoint_has_not_is_one_line(kind: str, tmp_path: Path) -> None:
    """What only the folder's own configuration can tell, when it is read."""
    encoders.parse(CASES[kind]).build().save_checkpoint(tmp_path)
    config = encoders.parse({"type": CASES[kind]["type"], "checkpoint": str(tmp_path), "encoder_layers": [0, 7]})
    with pytest.raises(PalError, match="encoder_layers: 7 is out of range") as caught:
        config.resolved()
    assert "\n" not in str(caught.value)


def test_whisper_and_its_mels_must_fit() -> None:
    config = encoders.parse({"type": "whisper", "config": WHISPER, "preprocessor": {"feature_size": 128}})
    with pytest.raises(PalError, match="feature_size 128 does not fit"):
        config.front_end()


def test_settings_without_effect_warn() -> None:
    with pytest.warns(UserWarning, match="window_s has no effect"):
        encoders.parse(CASES["ast"] | {"window_s": 3.0})
    with pytest.warns(UserWarning, match="layerdrop has no effect"):
        encoders.parse(wave("hubert", WAVE, layerdrop=0.2))
