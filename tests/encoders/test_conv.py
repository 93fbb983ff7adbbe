"""The small network: its log-mel front end, its size, and that training mode keeps clips apart."""

import numpy as np
import pytest
import torch

from encoders.cases import CASES, RATE_HZ, join, noise
from pal_audio import encoders
from pal_audio.encoders import conv
from pal_audio.encoders.base import Samples
from pal_audio.encoders.conv import LOG_FLOOR, MEAN_DB, STD_DB, LogMel, spec_augment
from pal_audio.encoders.sslam import SslamFrontEnd


def test_the_default_is_small_and_gives_25_frames_a_second() -> None:
    config = encoders.parse({"type": "conv"})
    assert config.frame_rate_hz == 25
    assert sum(parameter.numel() for parameter in encoders.build(config).parameters()) < 700_000


def test_the_front_end_keeps_a_short_clip_short() -> None:
    front_end = encoders.parse({"type": "conv"}).front_end()
    assert front_end(noise(1)).shape == (1, 1, 64)
    assert front_end(noise(0)).shape == (1, 1, 64)
    assert front_end(noise(16_001)).shape == (1, 101, 64)
    assert front_end(noise(25 * RATE_HZ)).shape == (3, 1000, 64)


def test_log_mel_of_planted_tones() -> None:
    """A full-scale tone is loudest in the filter around it, near -6 dB; ten times softer is 20 dB less; silence is the floor."""
    front_end = encoders.parse({"type": "conv"}).front_end()
    times = np.arange(RATE_HZ) / RATE_HZ
    centres = []
    for hertz in (200.0, 1000.0, 4000.0):
        tone = np.sin(2 * np.pi * hertz * times)
        loud, soft = (front_end(gain * tone)[0, 50] * STD_DB + MEAN_DB for gain in (1.0, 0.1))
        centres.append(int(loud.argmax()))
        assert -12 < float(loud.max()) < 3
        assert float(loud.max() - soft.max()) == pytest.approx(20, abs=0.1)
    mels = [2595 * np.log10(1 + hertz / 700) for hertz in (200.0, 1000.0, 4000.0)]
    expected = [mel / (2595 * np.log10(1 + 8000 / 700)) * 65 - 1 for mel in mels]
    assert np.abs(np.array(centres) - expected).max() < 1
    silence = front_end(np.zeros(1600))
    assert float(silence.mean()) == pytest.approx((10 * np.log10(LOG_FLOOR) - MEAN_DB) / STD_DB, abs=1e-4)


def test_frames_are_the_same_whatever_is_computed_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    front_end = encoders.parse({"type": "conv", "fft_samples": 1024}).front_end()
    wav_S = np.random.default_rng(0).normal(0, 0.1, 16_000 * 3 + 17).astype(np.float32)
    some_FM = front_end.features(wav_S)
    monkeypatch.setattr(conv, "FRAMES_AT_ONCE", 10**6)
    assert len(some_FM) == 301
    torch.testing.assert_close(some_FM, front_end.features(wav_S), atol=1e-6, rtol=0)


def test_every_mel_filter_sees_something() -> None:
    for fields in ({}, {"num_mels": 128}, {"sampling_rate_hz": 8000, "fft_samples": 200, "hop_samples": 80}):
        bank_NM = encoders.parse({"type": "conv"} | fields).front_end().bank_NM
        assert (bank_NM.sum(0) > 0.3).all()


def test_a_frame_knows_its_time() -> None:
    """A click moves the frames around it, and none that are further than the convolutions reach."""
    config = encoders.parse(CASES["conv"] | {"num_layers": 0, "window_s": 2.0})
    encoder, front_end = encoders.build(config).eval(), config.front_end()
    click = np.zeros(RATE_HZ, dtype=np.float32)
    click[RATE_HZ // 2] = 1
    with torch.no_grad():
        quiet, heard = (encoder(front_end(wav), torch.tensor([RATE_HZ])).layers[0][0] for wav in (np.zeros_like(click), click))
    places = (heard - quiet).norm(dim=-1).nonzero()[:, 0]
    assert 10 <= places.min() <= 12 <= places.max() <= 14


def test_training_mode_keeps_clips_apart() -> None:
    encoder = encoders.build(encoders.parse(CASES["conv"] | {"spec_augment": False})).train()
    front_end = encoder.config.front_end()
    short, long = front_end(noise(1700)), front_end(noise(6000, 1))
    together = encoder(join([short, long]), torch.tensor([1700, 6000])).layers[0][0, :3]
    torch.testing.assert_close(together, encoder(short, torch.tensor([1700])).layers[0][0], atol=1e-5, rtol=1e-5)
    # What the padding holds is never read.
    dirty = join([short, long])
    dirty[0, short.shape[1] :] = 1e3
    torch.testing.assert_close(encoder(dirty, torch.tensor([1700, 6000])).layers[0][0, :3], together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_that_gets_samples_makes_the_front_end_s_frames_of_them(dtype: torch.dtype) -> None:
    """Clips of several windows and lengths, alone and together, whatever the padding holds and under autocast."""
    config = encoders.parse(CASES["conv"] | {"window_s": 0.5, "fft_samples": 1024, "spec_augment": False})
    encoder, front_end, samples = encoders.build(config).eval().to(dtype), config.front_end(), Samples(config.window_samples)
    waves = [noise(1), noise(1700, 1), noise(8000, 2), noise(20_001, 3)]
    lengths = torch.tensor([len(wav) for wav in waves])
    expected = encoder(join([front_end(wav) for wav in waves]), lengths).layers[0]
    windows = [window for wav in waves for window in samples(wav)]
    together = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
    torch.testing.assert_close(encoder(together, lengths).layers[0], expected, atol=2e-5, rtol=1e-5)
    for clip, wav in enumerate(waves):
        alone = encoder(samples(wav), lengths[clip : clip + 1]).layers[0][0]
        torch.testing.assert_close(alone, expected[clip, : len(alone)], atol=1e-2 if dtype == torch.bfloat16 else 2e-5, rtol=1e-5)
    together[1, 1700:] = 1e3
    torch.testing.assert_close(encoder(together, lengths).layers[0], expected, atol=2e-5, rtol=1e-5)


def test_features_of_samples_are_not_made_in_autocast_s_dtype() -> None:
    log_mel = encoders.parse({"type": "conv"}).front_end()
    wav_WS = torch.from_numpy(noise(8000))[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = log_mel.of_windows(wav_WS)
    assert torch.equal(inside, log_mel.of_windows(wav_WS))


def test_features_of_samples_are_float32_whatever_the_default_is() -> None:
    config = encoders.parse(CASES["conv"])
    features = config.front_end()(noise(4000))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(config.front_end()(noise(4000)), features)
    finally:
        torch.set_default_dtype(torch.float32)


def test_samples_go_to_an_encoder_on_a_gpu_alone() -> None:
    config = encoders.parse({"type": "conv"})
    assert isinstance(config.front_end_for(torch.device("cuda")), Samples)
    assert isinstance(config.front_end_for(torch.device("cpu")), LogMel)
    assert isinstance(encoders.parse(CASES["sslam"]).front_end_for(torch.device("cuda")), SslamFrontEnd)


def test_augmentation_only_in_training_and_from_torch_s_generator() -> None:
    encoder = encoders.build(encoders.parse(CASES["conv"]))
    features, lengths = encoder.config.front_end()(noise(6000)), torch.tensor([6000])

    def frames() -> torch.Tensor:
        torch.manual_seed(3)
        return encoder(features, lengths).layers[0]

    calm = encoder.eval()(features, lengths).layers[0]
    assert torch.equal(calm, frames())
    encoder.train()
    assert torch.equal(frames(), frames())
    assert not torch.allclose(frames(), calm)


def test_augmentation_masks_bands_within_limits() -> None:
    mel_WFM = torch.full((64, 100, 64), 5.0)
    masked = spec_augment(mel_WFM, torch.full((64,), 100)) == 0
    rows, columns = masked.all(2).sum(1), masked.all(1).sum(1)
    assert 0 < rows.max() <= 20
    assert 0 < columns.max() <= 20
    assert (masked == (masked.all(2)[:, :, None] | masked.all(1)[:, None, :])).all()
