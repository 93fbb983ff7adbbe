"""`clap` against transformers' own modules on the same weights. Each known mistake turns a test here red."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ClapAudioModel,
    ClapAudioModelWithProjection,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
)

from encoders.cases import CASES, CLAP, CLAP_MEL, RATE_HZ, noise
from pal_audio import encoders
from pal_audio.encoders.clap import ClapEncoder
from pal_audio.errors import PalError

KINDS = ["clap", "clap-fusion"]
STEPS, BANDS = 32, 2


def built(name: str, std: float = 0.2, **options: Any) -> ClapEncoder:
    """Weights above their initial size, at which layers hardly matter."""
    torch.manual_seed(0)
    encoder = encoders.build(encoders.parse(CASES[name] | options)).eval()
    assert isinstance(encoder, ClapEncoder)
    statistics = encoder.model.audio_encoder.batch_norm
    torch.nn.init.normal_(statistics.running_mean, -30)  # as after training: not the identity
    torch.nn.init.constant_(statistics.running_var, 100)
    for key, value in encoder.named_parameters():
        if key.endswith("weight") and value.dim() > 1:
            torch.nn.init.normal_(value, std=std)
    return encoder


def stock(encoder: ClapEncoder) -> tuple[ClapFeatureExtractor, ClapAudioModel]:
    model = ClapAudioModel(encoder.config.architecture)
    model.load_state_dict(encoder.model.state_dict())
    return ClapFeatureExtractor(**encoder.config.extractor_fields), model.eval()


def frames_of(encoder: ClapEncoder, wav_S: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return encoder(encoder.config.front_end()(wav_S), torch.tensor([len(wav_S)])).layers[0][0]


# The network


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [RATE_HZ, 6000])
@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_those_of_transformers(name: str, num_samples: int) -> None:
    """Frame by frame: time-major, low band first, the frames of padding dropped; fusion from one view, as for a whole clip."""
    encoder = built(name)
    extractor, model = stock(encoder)
    image = extractor(noise(num_samples), sampling_rate=RATE_HZ, return_tensors="pt")["input_features"]
    assert image.shape == (1, 4 if name == "clap-fusion" else 1, 201, 16)
    output = model(image.float(), is_longer=torch.zeros(1, 1, dtype=torch.bool))
    theirs = output.last_hidden_state[0]
    assert theirs.shape == (32, BANDS, STEPS)
    ours = frames_of(encoder, noise(num_samples))
    assert len(ours) == BANDS * (-(-num_samples * STEPS // RATE_HZ))
    for place, frame in enumerate(ours):
        torch.testing.assert_close(frame, theirs[:, place % BANDS, place // BANDS], atol=1e-5, rtol=1e-5)
    if num_samples == RATE_HZ:
        torch.testing.assert_close(ours.mean(0), output.pooler_output[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_window_is_never_fused_with_views_of_more() -> None:
    """transformers calls one clip of a batch longer than it is; then it is fused with itself, and depends on its neighbours."""
    encoder = built("clap-fusion")
    extractor, model = stock(encoder)
    inputs = extractor(noise(RATE_HZ), sampling_rate=RATE_HZ, return_tensors="pt")
    assert inputs["is_longer"].tolist() == [[True]]
    fused = model(inputs["input_features"].float(), is_longer=inputs["is_longer"]).pooler_output[0]
    assert not torch.allclose(frames_of(encoder, noise(RATE_HZ)).mean(0), fused, atol=1e-2)
    never_read = {name.split(".")[3] for name, value in encoder.named_parameters() if not value.requires_grad}
    assert never_read == {"fusion_model", "mel_conv2d"}


@torch.no_grad()
def test_layers_are_those_of_the_last_stage() -> None:
    encoder = built("clap", encoder_layers=[0, 1, 2])
    extractor, model = stock(encoder)
    image = extractor(noise(RATE_HZ), sampling_rate=RATE_HZ, return_tensors="pt")["input_features"].float()
    output = model(image, output_hidden_states=True)
    entering = output.hidden_states[-2].flatten(2).transpose(1, 2)
    first = model.audio_encoder.layers[-1].blocks[0](entering, (8, 8))[0]

    def in_time_order(rows: torch.Tensor) -> torch.Tensor:
        """Row 2 * chunk + band of the 8 x 8 map is a band of a quarter of the time."""
        grid = rows[0].reshape(8, 8, 32)
        return torch.stack([grid[2 * (step // 8) + band, step % 8] for step in range(STEPS) for band in range(BANDS)])

    last = output.last_hidden_state[0].permute(2, 1, 0).flatten(0, 1)
    theirs = torch.cat([in_time_order(entering), in_time_order(first), last], dim=1)
    torch.testing.assert_close(frames_of(encoder, noise(RATE_HZ)), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [[0], "last"])
def test_frames_are_in_time_order(layers: Any) -> None:
    """A tone burst changes the frames of its own time most, and those of its own band."""
    encoder = built("clap", std=0.05, encoder_layers=layers)  # attention far from here must not drown what is heard here
    quiet = 1e-2 * noise(RATE_HZ)

    def changed(step: int, hertz: float) -> np.ndarray:
        burst = quiet.copy()
        times = np.arange(step * 500, step * 500 + 500)
        burst[times] += 0.3 * np.sin(2 * np.pi * hertz * times / RATE_HZ).astype(np.float32)
        return (frames_of(encoder, burst) - frames_of(encoder, quiet)).norm(dim=-1).reshape(STEPS, BANDS).numpy()

    low, high = (np.stack([changed(step, hertz) for step in range(0, STEPS, 5)]) for hertz in (200.0, 6000.0))
    by_step = ((low + high) ** 2).sum(2)
    centres = (by_step * np.arange(STEPS)).sum(1) / by_step.sum(1)
    assert np.abs(centres - np.arange(0, STEPS, 5)).max() < 1.5
    if layers == [0]:
        assert (low.sum((0, 1)).argmax(), high.sum((0, 1)).argmax()) == (0, 1)


def test_training_does_not_move_the_statistics_of_the_input() -> None:
    encoder = built("clap").train()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    encoder(encoder.config.front_end()(noise(RATE_HZ)), torch.tensor([RATE_HZ]))
    assert all(torch.equal(value, before[key]) for key, value in encoder.named_buffers())
    assert encoder.training


# The front end


@pytest.mark.parametrize("num_samples", [1, 300, 5000, 9000, RATE_HZ])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_features_equal_those_of_transformers(truncation: str, padding: str, num_samples: int) -> None:
    """The mel bank of each truncation, HTK's or Slaney's; the frequency limits; the padding."""
    fields = CLAP_MEL | {"truncation": truncation, "padding": padding}
    front_end = encoders.parse(CASES["clap"] | {"preprocessor": fields}).front_end()
    theirs = ClapFeatureExtractor(**fields)(noise(num_samples), sampling_rate=RATE_HZ, return_tensors="np")["input_features"]
    assert np.array_equal(front_end(noise(num_samples))[0].numpy(), theirs[0, 0].astype(np.float32))


def test_mel_banks_paddings_and_limits_differ() -> None:
    """So that the comparison above can tell them apart."""
    changes = [{}, {"truncation": "fusion"}, {"padding": "pad"}, {"padding": "repeat"}, {"frequency_min": 0}]
    images = [encoders.parse(CASES["clap"] | {"preprocessor": CLAP_MEL | c}).front_end()(noise(5000)) for c in changes]
    for place, image in enumerate(images):
        assert all(not torch.allclose(image, other, atol=0.1) for other in images[:place])


@pytest.mark.parametrize("name", KINDS)
def test_a_long_clip_is_cut_in_order_and_nothing_is_drawn(name: str) -> None:
    front_end = encoders.parse(CASES[name]).front_end()
    wav_S = noise(2 * RATE_HZ + 5000)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    windows = front_end(wav_S)
    assert np.array_equal(np.random.get_state()[1], state)
    assert windows.shape == (3, 201, 16)
    for place, start in enumerate(range(0, len(wav_S), RATE_HZ)):
        assert torch.equal(windows[place], front_end(wav_S[start : start + RATE_HZ])[0])
    assert torch.equal(windows, front_end(wav_S))


# Sizes


@pytest.mark.parametrize(
    ("fields", "width", "millions"),
    [
        ({}, 768, 27.5),
        ({"depths": [2, 2, 12, 2], "patch_embeds_hidden_size": 128, "hidden_size": 1024}, 1024, 67.8),
    ],
    ids=["htsat-unfused", "larger"],
)
def test_published_sizes(fields: dict[str, Any], width: int, millions: float) -> None:
    config = encoders.parse({"type": "clap", "config": {"depths": [2, 2, 6, 2]} | fields})
    assert (config.sampling_rate_hz, config.window_samples, config.hidden_size) == (48_000, 480_000, width)
    assert config.output_lengths(480_000) == 64
    assert config.frame_rate_hz == 6.4
    assert config.output_lengths(480_000 * 3 + 15_001) == 3 * 64 + 4
    with torch.device("meta"):
        encoder = encoders.build(config)
    assert sum(value.numel() for value in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert config.front_end()(noise(20_000)).shape == (1, 1001, 64)


# Checkpoints


def write(folder: Path, model_class: Any, **preprocessor: Any) -> dict[str, torch.Tensor]:
    """A folder of transformers' making, and the weights of its audio network."""
    text = ClapTextConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    both = ClapConfig(text_config=text.to_dict(), audio_config=CLAP, projection_dim=16)
    model = model_class(both if model_class is ClapModel else both.audio_config)
    model.save_pretrained(folder)
    ClapFeatureExtractor(**(CLAP_MEL | preprocessor)).save_pretrained(folder)
    part = model if model_class is ClapAudioModel else model.audio_model
    return {f"model.{key}": value for key, value in part.state_dict().items()}


@pytest.mark.parametrize("model_class", [ClapModel, ClapAudioModelWithProjection, ClapAudioModel])
def test_folders_with_safetensors_are_read(tmp_path: Path, model_class: Any) -> None:
    weights = write(tmp_path, model_class, padding="pad", frequency_max=5000)
    config = encoders.parse({"type": "clap", "checkpoint": str(tmp_path), "frozen": True})
    encoder = encoders.build(config)
    assert encoder.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in encoder.state_dict().items())
    front_end = config.front_end()
    assert (front_end.extractor.padding, front_end.extractor.frequency_max, config.window_samples) == ("pad", 5000, RATE_HZ)
    resolved = encoders.parse(config.resolved().model_dump(mode="json"))
    assert torch.equal(resolved.front_end()(noise(3000)), front_end(noise(3000)))
    encoders.build(resolved).load_state_dict(encoder.state_dict())


def test_the_preprocessor_of_a_checkpoint_is_needed(tmp_path: Path) -> None:
    write(tmp_path, ClapModel)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(PalError, match=r"no preprocessor_config\.json"):
        encoders.build(encoders.parse({"type": "clap", "checkpoint": str(tmp_path)}))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, ClapModel)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(PalError, match="only safetensors are read"):
        encoders.build(encoders.parse({"type": "clap", "checkpoint": str(tmp_path)}))
