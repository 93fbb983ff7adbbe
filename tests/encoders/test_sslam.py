"""`sslam` against Kaldi, a second implementation and the published names. Each known mistake turns a test here red."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from encoders import plain_sslam
from encoders.cases import CASES, noise
from encoders.plain_sslam import TINY, hub_name, position, published_shapes, tiny_image, tiny_weights
from pal_audio import encoders
from pal_audio.encoders.kaldi import LogMelBank
from pal_audio.encoders.sslam import SslamEncoder, position_table
from pal_audio.errors import PalError

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden/sslam.json").read_text())
BASE = encoders.parse({"type": "sslam"})
SILENCE, PADDING = -1.2776, 0.4671
RATE_HZ = 16_000


def store(path: Path, weights: dict[str, np.ndarray], rename: Any = str, **more: np.ndarray) -> dict[str, Any]:
    """A file of weights, and the configuration that reads it."""
    save_file({rename(name): torch.from_numpy(value) for name, value in (weights | more).items()}, path)
    return {"type": "sslam", "checkpoint": str(path)} | TINY


def loaded(path: Path, **options: Any) -> SslamEncoder:
    encoder = encoders.build(encoders.parse(store(path / "model.safetensors", tiny_weights(0)) | options)).eval()
    assert isinstance(encoder, SslamEncoder)
    return encoder


def frames_of_the_tiny_image(encoder: encoders.AudioEncoder, seed: int = 1) -> torch.Tensor:
    image = torch.from_numpy(tiny_image(seed))[None]
    with torch.no_grad():
        return encoder(image, torch.tensor([encoder.config.window_samples])).layers[0][0]


# The front end


def test_log_mel_equals_stored_values_of_kaldi() -> None:
    wav_S = torch.tensor(GOLDEN["sound"])
    ours = LogMelBank(80)(wav_S - wav_S.mean())
    torch.testing.assert_close(ours, torch.tensor(GOLDEN["kaldi_80"]), atol=1e-3, rtol=0)


def test_features_equal_stored_values() -> None:
    """Divisor std in place of 2 std, sound in int16, another window or scale: all show here."""
    wav_S = np.array(GOLDEN["sound"], dtype=np.float32)
    ours = BASE.front_end()(wav_S)[0]
    theirs = (torch.tensor(GOLDEN["log_mel_128"]) + 4.268) / (2 * 4.569)
    assert theirs.shape == (8, 128)
    torch.testing.assert_close(ours[:8], theirs, atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_log_mel_equals_that_of_transformers() -> None:
    """Over a whole 10 s, with a speech-like envelope."""
    wav_S = noise(10 * RATE_HZ) * np.sin(np.arange(10 * RATE_HZ) / 3000).astype(np.float32) ** 2
    bank = mel_filter_bank(257, 128, 20, 8000, RATE_HZ, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True)
    hann = window_function(400, "hann", periodic=False)
    options: dict[str, Any] = {"preemphasis": 0.97, "remove_dc_offset": True, "log_mel": "log", "mel_floor": 2.0**-23}
    centred_S = wav_S - wav_S.mean()
    theirs = spectrogram(centred_S, hann, 400, 160, fft_length=512, power=2.0, center=False, mel_filters=bank, **options).T
    ours = BASE.front_end()(wav_S)[0, :998] * 2 * 4.569 - 4.268
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), atol=2e-3, rtol=0)


def test_the_image_is_padded_not_the_sound() -> None:
    quiet = BASE.front_end()(np.zeros(10 * RATE_HZ, dtype=np.float32))
    assert quiet.shape == (1, 1024, 128)
    torch.testing.assert_close(quiet[0, :998], torch.full((998, 128), SILENCE), atol=1e-4, rtol=0)
    torch.testing.assert_close(quiet[0, 998:], torch.full((26, 128), PADDING), atol=1e-4, rtol=0)


def test_one_mel_bin_is_always_at_the_floor() -> None:
    values = BASE.front_end()(noise(RATE_HZ))[0, :98]
    at_floor = ((values - SILENCE).abs() < 1e-4).all(dim=0)
    assert at_floor.nonzero()[:, 0].tolist() == [3]


def test_an_offset_of_the_sound_changes_nothing() -> None:
    front_end = BASE.front_end()
    torch.testing.assert_close(front_end(noise(4000) + 0.25), front_end(noise(4000)), atol=1e-3, rtol=0)


# The network


def test_frames_equal_the_stored_reference(tmp_path: Path) -> None:
    ours = frames_of_the_tiny_image(loaded(tmp_path))
    torch.testing.assert_close(ours, torch.tensor(GOLDEN["frames"]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("seed", [2, 3])
def test_every_layer_equals_the_second_implementation(tmp_path: Path, seed: int) -> None:
    """A norm after the last block, one before it, a position on CLS, the tanh GELU, frequency first: all show here."""
    encoder = loaded(tmp_path, encoder_layers=[0, 1, 2])
    states = plain_sslam.encode(tiny_image(seed), tiny_weights(0))
    theirs = torch.from_numpy(np.concatenate([np.array(state[1:]) for state in states], axis=1)).float()
    torch.testing.assert_close(frames_of_the_tiny_image(encoder, seed), theirs, atol=2e-5, rtol=0)


def test_norms_have_the_published_constant() -> None:
    encoder = encoders.build(encoders.parse(CASES["sslam"] | {"num_classes": 3}))
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert [module.eps for module in norms] == [1e-6] * 6


def test_positions_give_the_first_half_to_frequency() -> None:
    table = position_table(768, 8, 768)
    assert table.shape == (1, 6144, 768)
    for step, band in ((0, 0), (0, 7), (1, 0), (63, 3), (767, 7)):
        plain = torch.tensor(position(step, band, 768))
        torch.testing.assert_close(table[0, step * 8 + band], plain, atol=1e-6, rtol=0)
    assert table[0, 1, :192].abs().sum() > 0  # band 1 of step 0
    assert table[0, 1, 384:576].abs().sum() == 0


def test_positions_are_read_and_never_trained(tmp_path: Path) -> None:
    weights = tiny_weights(0)
    weights[plain_sslam.IMAGE + "fixed_positional_encoder.positions"] += 1
    encoder = encoders.build(encoders.parse(store(tmp_path / "w.safetensors", weights)))
    stored = torch.from_numpy(weights[plain_sslam.IMAGE + "fixed_positional_encoder.positions"])
    assert torch.equal(encoder.model.fixed_positional_encoder.positions, stored)
    assert not any("positions" in name for name, _ in encoder.named_parameters())


def test_the_head_gives_a_probability_of_each_class(tmp_path: Path) -> None:
    weights = tiny_weights(0, classes=5)
    values = store(tmp_path / "w.safetensors", weights)
    encoder = encoders.build(encoders.parse(values | {"num_classes": 5}))
    assert isinstance(encoder, SslamEncoder)
    theirs = plain_sslam.classify(plain_sslam.encode(tiny_image(1), weights)[-1][0], weights)
    with torch.no_grad():
        ours = encoder.class_probabilities(torch.from_numpy(tiny_image(1))[None])
    torch.testing.assert_close(ours[0].double(), torch.from_numpy(theirs), atol=1e-5, rtol=0)
    without = encoders.build(encoders.parse(values))  # the head of a fine-tuned file is not asked for
    assert torch.equal(frames_of_the_tiny_image(without), frames_of_the_tiny_image(encoder))
    assert isinstance(without, SslamEncoder)
    with pytest.raises(ValueError, match="no head: set num_classes"):
        without.class_probabilities(torch.from_numpy(tiny_image(1))[None])
    assert [name for name, value in encoder.named_parameters() if not value.requires_grad] == [
        "model.fc_norm.weight",
        "model.fc_norm.bias",
        "model.head.weight",
        "model.head.bias",
    ]


# Time


def test_the_rate_is_fifty_frames_a_second() -> None:
    assert BASE.window_samples == 163_840
    assert BASE.frame_rate_hz == 50
    assert BASE.output_lengths(10 * RATE_HZ) == 504  # 998 mel frames begin 63 steps
    assert BASE.output_lengths(163_840) == 512
    assert BASE.output_lengths(1) == 8
    assert BASE.output_lengths(40 * 60 * RATE_HZ) == pytest.approx(40 * 60 * 50, abs=8)
    assert encoders.parse({"type": "sslam", "image_frames": 512}).output_lengths(5 * RATE_HZ) == 256


def test_frames_are_in_time_order() -> None:
    """A tone burst changes what enters the first layer at its own time steps and band, and nowhere else."""
    encoder = encoders.build(encoders.parse(CASES["sslam"] | {"encoder_layers": [0]})).eval()
    front_end, window = encoder.config.front_end(), encoder.config.window_samples
    quiet = 1e-2 * noise(window)

    def changed(start: int, hertz: float) -> np.ndarray:
        burst = quiet.copy()
        times = np.arange(start, start + 800)
        burst[times] += 0.3 * np.hanning(800).astype(np.float32) * np.sin(2 * np.pi * hertz * times / RATE_HZ).astype(np.float32)
        with torch.no_grad():
            both = [encoder(front_end(wav), torch.tensor([window])).layers[0][0] for wav in (quiet, burst)]
        return (both[1] - both[0]).norm(dim=-1).reshape(4, 2).numpy()

    for step in range(4):
        difference = changed(step * 16 * 160 + 900, 200.0)
        assert difference.argmax() == 2 * step
        assert difference[np.arange(4) != step].max() < 1e-4
        assert changed(step * 16 * 160 + 900, 6000.0).argmax() == 2 * step + 1


# Weights


@functools.cache
def base_on_meta() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        encoder = encoders.build(encoders.parse({"type": "sslam", "num_classes": 527}))
    assert isinstance(encoder, SslamEncoder)
    num_head = 527 * 769 + 2 * 768
    assert sum(value.numel() for value in encoder.parameters()) - num_head == 85_254_144
    assert sum(value.numel() for value in encoder.buffers()) == 4_718_592
    return {name: tuple(value.shape) for name, value in encoder.state_dict().items()}


def test_names_and_shapes_are_the_published_ones() -> None:
    published = published_shapes(768, 12, 3072, 16, 6144, classes=527)
    assert len(published) == 150 + 4
    assert base_on_meta() == {hub_name(name): shape for name, shape in published.items()}


@pytest.mark.parametrize("rename", [str, hub_name, "model.{}".format], ids=["training-code", "hub", "fine-tuned"])
def test_all_naming_schemes_are_read(tmp_path: Path, rename: Any) -> None:
    encoder = encoders.build(encoders.parse(store(tmp_path / "model.safetensors", tiny_weights(0), rename)))
    theirs = {hub_name(name): torch.from_numpy(value) for name, value in tiny_weights(0).items()}
    assert encoder.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items())


def test_the_student_is_read_not_the_teacher(tmp_path: Path) -> None:
    others = {f"_ema.{name}": value for name, value in tiny_weights(9).items()}
    others |= {"modality_encoders.IMAGE.decoder.blocks.0.0.weight": np.ones(3, dtype=np.float32)}
    for number, rename in enumerate((str, "model.{}".format)):
        values = store(tmp_path / f"{number}.safetensors", tiny_weights(0), rename, **others)
        ours = frames_of_the_tiny_image(encoders.build(encoders.parse(values)))
        torch.testing.assert_close(ours, torch.tensor(GOLDEN["frames"]), atol=2e-5, rtol=0)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    weights = {name: torch.from_numpy(value).bfloat16() for name, value in tiny_weights(0).items()}
    save_file(weights, tmp_path / "model.safetensors")
    encoder = encoders.build(encoders.parse({"type": "sslam", "checkpoint": str(tmp_path)} | TINY))
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}


def test_what_is_saved_has_the_names_of_the_hub(tmp_path: Path) -> None:
    loaded(tmp_path).save_checkpoint(tmp_path / "saved")
    assert load_file(tmp_path / "saved/model.safetensors").keys() == {hub_name(name) for name in tiny_weights(0)}


def refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PalError, match=message) as caught:
        encoders.build(encoders.parse(values))
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    values = store(file, tiny_weights(0))
    refused(values | {"num_layers": 1}, r"blocks\.1\.attn\.proj\.bias is \(16,\), this config asks for nothing")
    refused(values | {"num_layers": 3}, r"blocks\.2\..* is nothing")
    refused(values | {"num_classes": 5}, r"fc_norm\.bias is nothing")
    refused(values | {"intermediate_size": 20}, r"mlp\.fc1\.bias is \(24,\), this config asks for \(20,\)")
    store(file, tiny_weights(0), norm=np.ones(3, dtype=np.float32))
    refused(values, r"norm is \(3,\), this config asks for nothing")
    store(file, tiny_weights(0), **{"model.blocks.0.norm1.bias": np.ones(16, dtype=np.float32)})
    refused(values, "are the same weight; keep one")
    file.write_bytes(b"\x08\0\0\0\0\0\0\0notJSON!")
    refused(values, "cannot be read")


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path: Path) -> None:
    refused({"type": "sslam", "checkpoint": str(tmp_path)}, r"no model\.safetensors in this folder")
    (tmp_path / "EAT-base.pt").write_bytes(b"x")
    refused({"type": "sslam", "checkpoint": str(tmp_path / "EAT-base.pt")}, "only .safetensors files are read")
    refused({"type": "sslam", "checkpoint": "nobody/nothing"}, "cannot be had from the hub")


def test_a_saved_folder_says_its_sizes(tmp_path: Path) -> None:
    loaded(tmp_path).save_checkpoint(tmp_path)
    config = encoders.parse({"type": "sslam", "checkpoint": str(tmp_path), "encoder_layers": [0]})
    assert (config.hidden_size, config.encoder_layers, config.window_samples) == (16, [0], 16 * 160)
    refused({"type": "sslam", "checkpoint": str(tmp_path), "num_heads": 4}, "has num_heads 2, not 4; leave it out")
    (tmp_path / "config.json").write_text('{"model_type": "eat"}')  # of the published folders
    assert encoders.parse({"type": "sslam", "checkpoint": str(tmp_path)}).hidden_size == 768
    for content, words in (("{", "cannot be read"), ("[]", "not of an sslam"), ('{"type": "conv"}', "not of an sslam")):
        (tmp_path / "config.json").write_text(content)
        refused({"type": "sslam", "checkpoint": str(tmp_path)}, words)
    (tmp_path / "config.json").write_text(" " * (2**20 + 1))
    refused({"type": "sslam", "checkpoint": str(tmp_path)}, "over the limit")
