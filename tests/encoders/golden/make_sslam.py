"""Make sslam.json: log-mel values by Kaldi's code and by `plain_sslam.py`, frames of a tiny network by the latter.

PYTHONPATH=tests python tests/encoders/golden/make_sslam.py, where kaldi-native-fbank (1.23.0 made what is stored) and numpy
are installed. That package refuses 128 mel bins, of which one is empty, so it gives 80 and the plain code, which is compared
with it here, gives 128.
"""

import json
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np

from encoders import plain_sslam


def sound() -> np.ndarray:
    """0.1 s: noise on an offset, then a tone with a little noise (a pure one leaves bins to the rounding of float32)."""
    wav = 0.2 * np.random.default_rng(0).standard_normal(1600) + 0.05
    wav[800:] = 0.02 * wav[800:] + 0.5 * np.sin(2 * np.pi * 1234.5 * np.arange(800) / 16_000)
    return wav.astype(np.float32)


def kaldi(wav: np.ndarray, num_mels: int) -> list[list[float]]:
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = 16_000
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = num_mels
    options.use_energy = False
    options.htk_compat = True
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(16_000, (wav - wav.mean()).tolist())
    bank.input_finished()
    return [[round(float(value), 5) for value in bank.get_frame(i)] for i in range(bank.num_frames_ready)]


def rounded(rows: list[np.ndarray], digits: int) -> list[list[float]]:
    return [[round(float(value), digits) for value in row] for row in rows]


kaldi_80 = kaldi(sound(), 80)
assert np.abs(np.array(kaldi_80) - np.array(plain_sslam.log_mel(sound(), 80))).max() < 5e-4
states = plain_sslam.encode(plain_sslam.tiny_image(1), plain_sslam.tiny_weights(0))
values = {"sound": sound().tolist(), "kaldi_80": kaldi_80, "log_mel_128": rounded(plain_sslam.log_mel(sound(), 128), 5)}
values |= {"frames": rounded(states[-1][1:], 7)}
(Path(__file__).parent / "sslam.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
