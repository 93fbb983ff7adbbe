"""Kaldi's log-mel filter bank on torch, with the options of EAT and SSLAM.

Frames of 25 ms every 10 ms, whole ones only; each loses its mean, is pre-emphasised and windowed by a symmetric Hann.
Power of 512 points, triangles that are linear in mel from 20 Hz to half the rate, natural log.

Shapes: S samples, F mel frames, P points of a spectrum, M mel bins.

Source: Kaldi `compute-fbank-feats` (feat/feature-fbank.cc, feat/mel-computations.cc), as torchaudio's
`compliance.kaldi.fbank` follows it. Own code, since torchaudio is no dependency and transformers' extractor for such images
takes another path where it is installed.
"""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from pal_audio.encoders.base import FRAMES_AT_ONCE

SAMPLING_RATE_HZ = 16_000
FRAME_SAMPLES = SAMPLING_RATE_HZ * 25 // 1000
HOP_SAMPLES = SAMPLING_RATE_HZ * 10 // 1000
FFT_SAMPLES = 512
PRE_EMPHASIS = 0.97
LOWEST_HZ = 20.0
FLOOR = torch.finfo(torch.float32).eps


def num_mel_frames(num_samples: int) -> int:
    """Whole frames in a sound; one that is shorter than a frame counts as one."""
    return 1 + max(num_samples - FRAME_SAMPLES, 0) // HOP_SAMPLES


class LogMelBank:
    """Waveform to log-mel frames."""

    def __init__(self, num_mels: int) -> None:
        self.hann_S = torch.hann_window(FRAME_SAMPLES, periodic=False)
        self.bank_PM = kaldi_mel_bank(num_mels)

    def __call__(self, wav_S: Tensor) -> Tensor:
        """Natural log of the mel power.

        Args:
            wav_S: float32 at 16 kHz in [-1, 1]; zeros are added to one that is shorter than a frame.

        Returns:
            (F, M) float32.
        """
        wav_S = nnf.pad(wav_S, (0, max(FRAME_SAMPLES - len(wav_S), 0)))
        frames_FS = wav_S.unfold(0, FRAME_SAMPLES, HOP_SAMPLES)
        return torch.cat([self._log_mel(some_FS) for some_FS in frames_FS.split(FRAMES_AT_ONCE)])

    def _log_mel(self, frames_FS: Tensor) -> Tensor:
        """FM, of frames of samples."""
        frames_FS = frames_FS - frames_FS.mean(dim=1, keepdim=True)
        before_FS = torch.cat([frames_FS[:, :1], frames_FS[:, :-1]], dim=1)
        spectrum_FP = torch.fft.rfft((frames_FS - PRE_EMPHASIS * before_FS) * self.hann_S, n=FFT_SAMPLES)
        power_FP = spectrum_FP.real.square() + spectrum_FP.imag.square()  # abs() takes a root for nothing
        return (power_FP @ self.bank_PM).clamp(min=FLOOR).log()


def kaldi_mel_bank(num_mels: int) -> Tensor:
    """Triangles (P, M) with peak 1, equally spaced in mel from 20 Hz to half the rate. A narrow one may hold no point."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    low, high = mel(torch.tensor([LOWEST_HZ, SAMPLING_RATE_HZ / 2], dtype=torch.float64)).tolist()
    points_P1 = mel(torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SAMPLING_RATE_HZ / FFT_SAMPLES)[:, None]
    step = (high - low) / (num_mels + 1)
    left_M = low + step * torch.arange(num_mels, dtype=torch.float64)
    rising, falling = (points_P1 - left_M) / step, (left_M + 2 * step - points_P1) / step
    assert math.isclose(float(points_P1[-1]), high)
    return torch.minimum(rising, falling).clamp(min=0).float()
