"""The same weights in transformers' own modules give the same frames."""

import copy

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from encoders.cases import CASES, RATE_HZ, noise
from pal_audio import encoders
from pal_audio.encoders import AudioEncoder

LENGTHS = [7000, 3000]
WAVES = [name for name in CASES if "window_s" in CASES[name] and name != "conv"]


def pair(name: str, reference_class: type = AutoModel) -> tuple[AudioEncoder, torch.nn.Module]:
    encoder = encoders.build(encoders.parse(CASES[name])).eval()
    architecture = copy.deepcopy(encoder.config.architecture)
    model = AutoModel.from_config(architecture) if reference_class is AutoModel else reference_class(architecture)
    model.load_state_dict(encoder.model.state_dict())
    return encoder, model.eval()


def frames_of(encoder: AudioEncoder, num_samples: int) -> torch.Tensor:
    return encoder(encoder.config.front_end()(noise(num_samples)), torch.tensor([num_samples])).layers[0][0]


@torch.no_grad()
def test_whisper() -> None:
    encoder, model = pair("whisper", WhisperEncoder)
    window_s = encoder.config.window_samples / RATE_HZ
    extractor = WhisperFeatureExtractor(chunk_length=window_s)
    extractor.n_samples = encoder.config.window_samples
    for num_samples in LENGTHS[1:]:
        mel = extractor(noise(num_samples), sampling_rate=RATE_HZ, return_tensors="pt", max_length=extractor.n_samples)
        theirs = model(mel["input_features"]).last_hidden_state[0]
        ours = frames_of(encoder, num_samples)
        assert len(ours) == -(-num_samples // 320) < len(theirs)
        torch.testing.assert_close(ours, theirs[: len(ours)], atol=1e-6, rtol=1e-6)


def test_whisper_of_published_size_drops_padding() -> None:
    config = encoders.parse({"type": "whisper", "config": {"d_model": 16, "encoder_attention_heads": 2}})
    assert config.window_samples == 30 * RATE_HZ
    assert config.output_lengths(10 * RATE_HZ) == 500
    assert config.output_lengths(70 * RATE_HZ) == 3500
    assert config.frame_rate_hz == 50
    assert config.front_end()(noise(100)).shape == (1, 80, 3000)


@torch.no_grad()
def test_ast() -> None:
    encoder, model = pair("ast")
    bands, steps = encoder.config.ast_grid
    extractor = ASTFeatureExtractor(max_length=64, num_mel_bins=48)
    window = encoder.config.window_samples
    image = extractor(noise(window), sampling_rate=RATE_HZ, return_tensors="pt")["input_values"]
    theirs = model(image).last_hidden_state[0, 2:]
    ours = frames_of(encoder, window)
    assert len(ours) == bands * steps
    for band in range(bands):
        for step in range(steps):
            torch.testing.assert_close(ours[step * bands + band], theirs[band * steps + step], atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", WAVES)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_wave_models(name: str) -> None:
    encoder, model = pair(name)
    extractor = Wav2Vec2FeatureExtractor()
    for num_samples in LENGTHS:
        wave = extractor(noise(num_samples), sampling_rate=RATE_HZ, return_tensors="pt")["input_values"]
        torch.testing.assert_close(frames_of(encoder, num_samples), model(wave).last_hidden_state[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_ast_frames_are_in_time_order() -> None:
    """A tone burst changes the embeddings of its own time step and band most, and no step before it."""
    encoder = encoders.build(encoders.parse(CASES["ast"] | {"encoder_layers": [0]})).eval()
    front_end = encoder.config.front_end()
    bands, steps = encoder.config.ast_grid
    window = encoder.config.window_samples
    quiet = 1e-3 * noise(window)

    def changed(start: int, hertz: float) -> np.ndarray:
        burst = quiet.copy()
        times = np.arange(start, start + 800)
        burst[times] += 0.3 * np.sin(2 * np.pi * hertz * times / RATE_HZ).astype(np.float32)
        both = [encoder(front_end(wav), torch.tensor([window])).layers[0][0] for wav in (quiet, burst)]
        return (both[1] - both[0]).norm(dim=-1).reshape(steps, bands).numpy()

    early, late = changed(160 * 5, 300.0), changed(160 * 45, 300.0)
    assert early[0].max() > 0.1
    assert early[3:].max() < 1e-4
    assert late[:2].max() < 1e-4
    assert late[4].max() > 0.1
    assert changed(160 * 20, 150.0).sum(0).argmax() == 0
    assert changed(160 * 20, 6000.0).sum(0).argmax() == bands - 1
