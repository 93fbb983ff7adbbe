"""One tiny configuration for each kind of encoder: a new member joins the tests by one row."""

from typing import Any

import numpy as np
import torch

RATE_HZ = 16_000
WAVE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 8, 4],
    "conv_stride": [8, 5, 4],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
WAVE_LAYER = WAVE | {"feat_extract_norm": "layer"}
AST = {
    "model_type": "audio-spectrogram-transformer",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_length": 64,
    "num_mel_bins": 48,
}
WHISPER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 40, "max_source_positions": 20}
WHISPER |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 40}

CLAP = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [1, 2],
    "num_attention_heads": [2, 4],
    "window_size": 4,
    "aff_block_r": 2,
}
CLAP_MEL = {"feature_size": 16, "sampling_rate": 16_000, "hop_length": 80, "max_length_s": 1, "fft_window_size": 256}
CLAP_MEL |= {"frequency_min": 50, "frequency_max": 7000, "padding": "repeatpad", "truncation": "rand_trunc"}
SSLAM = {"image_frames": 64, "num_mels": 32, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 40}
SSLAM |= {"position_steps": 6}


def wave(model_type: str, fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "transformers", "window_s": 0.5, "config": {"model_type": model_type} | fields | more}


CASES: dict[str, dict[str, Any]] = {
    "conv": {"type": "conv", "window_s": 0.4, "channels": [8, 16], "time_strides": [2, 2], "hidden_size": 32, "dropout": 0.0},
    "whisper": {"type": "whisper", "config": WHISPER},
    "sslam": {"type": "sslam"} | SSLAM,
    "clap": {"type": "clap", "config": CLAP, "preprocessor": CLAP_MEL},
    "clap-fusion": {
        "type": "clap",
        "config": CLAP | {"enable_fusion": True},
        "preprocessor": CLAP_MEL | {"truncation": "fusion"},
    },
    "ast": {"type": "transformers", "config": AST},
    "wav2vec2-layer": wave("wav2vec2", WAVE_LAYER, do_stable_layer_norm=True),
    "wav2vec2-group": wave("wav2vec2", WAVE),
    "hubert-layer": wave("hubert", WAVE_LAYER),
    "hubert-group": wave("hubert", WAVE),
    "hubert-batch-norm": wave("hubert", WAVE_LAYER, conv_pos_batch_norm=True),
    "wavlm": wave("wavlm", WAVE_LAYER),
    "unispeech": wave("unispeech", WAVE_LAYER),
    "unispeech-sat": wave("unispeech-sat", WAVE_LAYER),
    "data2vec-audio": wave("data2vec-audio", WAVE, num_conv_pos_embeddings=3),
    "wav2vec2-conformer": wave("wav2vec2-conformer", WAVE),
}


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def join(clips: list[torch.Tensor]) -> torch.Tensor:
    """Windows of several clips one after another, as the processor stacks them."""
    return torch.nn.utils.rnn.pad_sequence([window for clip in clips for window in clip], batch_first=True)
