"""Models by name, of published sizes and with random weights: nothing is downloaded.

Sizes are those of the models' public configuration files.
"""

import math
from dataclasses import dataclass
from typing import Any

from pal_audio.config import lookup
from pal_audio.errors import PalError
from pal_audio.integration.cost import EncoderCost, LlmShape

_LLAMA_ROPE = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
_QWEN_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}


def _llama(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int = 128_256) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab,
        "tie_word_embeddings": True, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_parameters": _LLAMA_ROPE,
    }  # fmt: skip


def _qwen(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "tie_word_embeddings": tied, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_parameters": _QWEN_ROPE,
    }  # fmt: skip


LLMS: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 64),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8, 128),
    "qwen2.5-0.5b": _qwen(896, 4864, 24, 14, 2, 151_936, True),
    "qwen2.5-1.5b": _qwen(1536, 8960, 28, 12, 2, 151_936, True),
    "qwen2.5-7b": _qwen(3584, 18_944, 28, 28, 4, 152_064, False),
    "tiny-llama": _llama(32, 64, 2, 4, 2, 8, 300),
    "small-llama": _llama(256, 512, 2, 8, 2, 32, 300),  # of heads that the kernels of a GPU serve
    "deep-llama": _llama(256, 512, 8, 8, 2, 32, 300),  # the same, of layers enough for one product of four projections
    "tiny-qwen2": _qwen(32, 64, 2, 4, 2, 300, False),
}


def _whisper(width: int, layers: int, heads: int, mels: int = 80, positions: int = 1500) -> dict[str, Any]:
    return {
        "d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads, "encoder_ffn_dim": 4 * width,
        "num_mel_bins": mels, "max_source_positions": positions,
    }  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """An encoder by name: its configuration, and the frames that a connector stacks to 25 audio tokens a second.

    Attributes:
        config: a dict for `pal_audio.encoders.parse`.
        given: True where its frames are random and it never runs.
    """

    config: dict[str, Any]
    stride: int
    given: bool = False


WHISPER_DEFAULTS = _whisper(384, 4, 6)
"""transformers' defaults (Whisper-tiny), for an inline configuration that leaves fields out."""
_WHISPERS = {
    "whisper-base": _whisper(512, 6, 8),
    "whisper-small": _whisper(768, 12, 12),
    "whisper-large-v3": _whisper(1280, 32, 20, 128),
    "tiny-whisper": _whisper(16, 2, 2, 20, 50),
}
_SMALL_CONV = {"channels": [2], "num_mels": 8, "num_layers": 0, "num_heads": 1, "time_strides": [2]}
ENCODERS: dict[str, Encoder] = {
    name: Encoder({"type": "whisper", "frozen": True, "config": fields}, stride=2) for name, fields in _WHISPERS.items()
} | {
    "conv": Encoder({"type": "conv", "frozen": True}, stride=1),
    # Stands for a frozen encoder of 50 frames a second, as wide as Whisper-large-v3.
    "frames": Encoder({"type": "conv", "frozen": True, "hidden_size": 1280, "window_s": 30.0, **_SMALL_CONV}, 2, given=True),
    "tiny-frames": Encoder({"type": "conv", "frozen": True, "hidden_size": 32, "window_s": 30.0, **_SMALL_CONV}, 2, given=True),
}  # fmt: skip


def find(name: str, known: dict[str, Any], what: str) -> Any:
    """An entry by name.

    Raises:
        PalError: there is none; the message names the nearest.
    """
    return lookup(known, name, f"{what} {name!r} is unknown")


def llm_shape(fields: dict[str, Any]) -> LlmShape:
    """The sizes that cost depends on, of an LLM's configuration as a dict.

    Raises:
        PalError: the family is none whose parts the cost model knows.
    """
    family = fields.get("model_type")
    if family not in ("llama", "qwen2", "mistral"):
        raise PalError(f"the cost model knows llama, qwen2 and mistral, not {family!r}")
    heads = fields["num_attention_heads"]
    return LlmShape(
        hidden_size=fields["hidden_size"],
        ffn_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        vocab_size=fields["vocab_size"],
        tied=bool(fields.get("tie_word_embeddings", False)),
        kv_bias=family == "qwen2",
    )


def encoder_cost(encoder: Encoder, num_frames: int) -> EncoderCost:
    """Parameters of an encoder, and its operations on a clip of `num_frames` frames."""
    if encoder.given:
        return EncoderCost()
    if encoder.config["type"] == "whisper":
        return _whisper_cost(encoder.config["config"], num_frames)
    return _conv_cost(encoder.config, num_frames)


def _whisper_cost(config: dict[str, Any], num_frames: int) -> EncoderCost:
    width, layers, mels = config["d_model"], config["encoder_layers"], config["num_mel_bins"]
    positions, ffn = config["max_source_positions"], config["encoder_ffn_dim"]
    convolutions = 3 * width * (2 * mels + width)  # products of two mel frames, which become one position
    layer = positions * (4 * width * width + 2 * width * ffn) + 2 * positions * positions * width
    window = 2 * (positions * convolutions + layers * layer)
    per_layer = 4 * width * width + 3 * width + 2 * width * ffn + ffn + width + 4 * width
    parameters = 3 * mels * width + 3 * width * width + 2 * width + positions * width + layers * per_layer + 2 * width
    return EncoderCost(parameters, math.ceil(num_frames / positions) * window)


def _conv_cost(fields: dict[str, Any], num_frames: int) -> EncoderCost:
    """Of a `conv` encoder; frames of the last window are padded where there are several."""
    from pal_audio.encoders.conv import ConvEncoderConfig

    config = ConvEncoderConfig(**fields)
    window_frames = config.window_frames(config.window_samples)
    windows, frames = math.ceil(num_frames / window_frames), min(num_frames, window_frames)
    length, bins, products, parameters, before = frames * math.prod(config.time_strides), config.num_mels, 0, 0, 1
    for channels, stride in zip(config.channels, config.time_strides, strict=True):
        length, bins = math.ceil(length / stride), bins // 2
        products += 9 * before * channels * length * bins
        parameters += 9 * before * channels + 3 * channels
        before = channels
    width, folded = config.hidden_size, before * bins
    products += frames * folded * width + config.num_layers * (8 * frames * width * width + 2 * frames * frames * width)
    parameters += folded * width + 3 * width + config.num_layers * (8 * width * width + 11 * width) + 2 * width
    return EncoderCost(parameters, 2 * windows * products)
