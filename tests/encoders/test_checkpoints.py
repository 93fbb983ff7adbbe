"""Weights come from folders as the ecosystem writes them, and what cannot be read is said in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from encoders.cases import AST, CASES, WAVE, WHISPER, noise
from pal_audio import encoders
from pal_audio.data.encoder_identity import EncoderIdentity, check_frozen
from pal_audio.errors import PalError


def whisper_folder(path: Path, model_class: Any) -> dict[str, torch.Tensor]:
    fields = WHISPER | {"num_mel_bins": 40, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = model_class(WhisperConfig(**fields, decoder_start_token_id=1))
    model.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=40).save_pretrained(path)
    encoder = model if model_class is WhisperEncoder else model.get_encoder()
    return {f"model.{key}": value for key, value in encoder.state_dict().items()}


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in weights.items())


@pytest.mark.parametrize("model_class", [WhisperForConditionalGeneration, WhisperModel, WhisperEncoder])
def test_whisper(tmp_path: Path, model_class: Any) -> None:
    weights = whisper_folder(tmp_path, model_class)
    config = encoders.parse({"type": "whisper", "checkpoint": str(tmp_path)})
    encoder = encoders.build(config)
    assert same(weights, encoder.state_dict())
    features = config.front_end()(noise(2000))
    assert features.shape == (1, 40, 40)
    assert encoder(features, torch.tensor([2000])).lengths.tolist() == [7]
    resolved = config.resolved()
    assert resolved.checkpoint is None
    assert torch.equal(resolved.front_end()(noise(2000)), features)
    encoders.build(resolved).load_state_dict(encoder.state_dict())


def test_ast_of_a_classifier(tmp_path: Path) -> None:
    fields = {key: value for key, value in AST.items() if key != "model_type"}
    model = ASTForAudioClassification(ASTConfig(**fields))
    model.save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=64, num_mel_bins=48, mean=-3.0, std=2.0).save_pretrained(tmp_path)
    config = encoders.parse({"type": "transformers", "checkpoint": str(tmp_path), "frozen": True})
    theirs = {f"model.{key}": value for key, value in model.audio_spectrogram_transformer.state_dict().items()}
    assert same(theirs, encoders.build(config).state_dict())
    assert config.front_end().extractor.mean == -3.0


def test_hubert_of_a_recogniser(tmp_path: Path) -> None:
    model = HubertForCTC(HubertConfig(**WAVE, vocab_size=32))
    model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=8000).save_pretrained(tmp_path)
    config = encoders.parse({"type": "transformers", "checkpoint": str(tmp_path), "window_s": 2.0})
    encoder = encoders.build(config)
    assert same({f"model.{key}": value for key, value in model.hubert.state_dict().items()}, encoder.state_dict())
    assert config.sampling_rate_hz == 8000
    assert config.window_samples == 16_000
    wav_S = noise(3000) + 1
    assert torch.equal(config.front_end()(wav_S)[0], torch.from_numpy(wav_S))
    encode = encoder.train()(config.front_end()(wav_S), torch.tensor([3000]))
    assert encode.lengths.tolist() == [config.output_lengths(3000)]


def test_conv(tmp_path: Path) -> None:
    weights = encoders.build(encoders.parse(CASES["conv"])).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "model.safetensors")
    loaded = encoders.build(encoders.parse(CASES["conv"] | {"checkpoint": str(tmp_path)}))
    assert same(weights, loaded.state_dict())
    with pytest.raises(PalError, match="this config asks for"):
        encoders.build(encoders.parse(CASES["conv"] | {"checkpoint": str(tmp_path), "hidden_size": 16}))


def refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PalError, match=message) as caught:
        encoders.build(encoders.parse(values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["conv", "whisper", "sslam", "clap", "transformers"])
def test_a_missing_folder(tmp_path: Path, kind: str) -> None:
    refused({"type": kind, "checkpoint": str(tmp_path / "absent")}, "absent")


def test_a_folder_without_config(tmp_path: Path) -> None:
    refused({"type": "whisper", "checkpoint": str(tmp_path)}, "its config cannot be read")


def test_a_folder_without_preprocessor(tmp_path: Path) -> None:
    whisper_folder(tmp_path, WhisperModel)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(PalError, match=r"no preprocessor_config\.json") as caught:
        encoders.parse({"type": "whisper", "checkpoint": str(tmp_path)}).front_end()
    assert "\n" not in str(caught.value)
    encoders.build(encoders.parse({"type": "whisper", "checkpoint": str(tmp_path), "preprocessor": {"feature_size": 40}}))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    whisper_folder(tmp_path, WhisperModel)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    refused({"type": "whisper", "checkpoint": str(tmp_path)}, "only safetensors are read")
    refused({"type": "conv", "checkpoint": str(tmp_path / "pytorch_model.bin")}, "only .safetensors files are read")


def test_weights_that_lack_the_encoder(tmp_path: Path) -> None:
    whisper_folder(tmp_path, WhisperModel)
    save_file({"model.decoder.x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused({"type": "whisper", "checkpoint": str(tmp_path)}, "lacks .* weights of the encoder")


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # of transformers' WavLM
def test_what_an_encoder_saves_is_its_checkpoint(tmp_path: Path, kind: str) -> None:
    """Every type: weights, features and frames come back from the folder, which holds no pickle; the frame cache knows it."""
    torch.manual_seed(0)
    encoder = encoders.build(encoders.parse(CASES[kind])).eval()
    encoder.save_checkpoint(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    window = {"window_s": CASES[kind]["window_s"]} if CASES[kind]["type"] == "transformers" and "window_s" in CASES[kind] else {}
    config = encoders.parse({"type": CASES[kind]["type"], "checkpoint": str(tmp_path), "frozen": True, **window})
    loaded = encoders.build(config)
    assert same(encoder.state_dict(), loaded.state_dict())
    features = encoder.config.front_end()(noise(9000))
    assert torch.equal(config.front_end()(noise(9000)), features)
    num_samples = torch.tensor([9000])
    frames, again = encoder(features, num_samples), loaded(features, num_samples)
    assert frames.lengths.tolist() == again.lengths.tolist() == [config.output_lengths(9000)]
    torch.testing.assert_close(again.layers[0], frames.layers[0], rtol=1e-5, atol=1e-5)
    assert EncoderIdentity.of(loaded) == EncoderIdentity.of(encoders.build(config))
    check_frozen({"audio": config})
    encoders.build(config.resolved()).load_state_dict(loaded.state_dict())


def test_a_conv_folder_says_its_sizes(tmp_path: Path) -> None:
    encoders.build(encoders.parse(CASES["conv"] | {"encoder_layers": [0]})).save_checkpoint(tmp_path)
    config = encoders.parse({"type": "conv", "checkpoint": str(tmp_path), "spec_augment": True, "window_s": 0.8})
    assert (config.hidden_size, config.encoder_layers, config.spec_augment) == (32, "last", True)
    assert config.window_samples == 12_800
    refused({"type": "conv", "checkpoint": str(tmp_path), "hop_samples": 80}, "has hop_samples 160, not 80; leave it out")
    for content, words in (("{", "cannot be read"), ("[]", "not of a conv"), ('{"type": "whisper"}', "not of a conv")):
        (tmp_path / "config.json").write_text(content)
        refused({"type": "conv", "checkpoint": str(tmp_path)}, words)
    (tmp_path / "config.json").write_text(" " * (2**20 + 1))
    refused({"type": "conv", "checkpoint": str(tmp_path)}, "over the limit")
