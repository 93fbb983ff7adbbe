"""Tiny models for the tests: one LLM per family, a small convolutional encoder, and a processor with its own tokenizer."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pal_audio.encoders.base import Samples
from pal_audio.encoders.conv import ConvEncoderConfig
from pal_audio.model import PalConfig, PalForConditionalGeneration, PalProcessor
from pal_audio.model.presets import ENCODERS_OF, preset
from pal_audio.model.tokenizer import train_tokenizer

RATE_HZ = 16_000
TINY_ENCODER = {
    "type": "conv", "num_mels": 16, "channels": [4, 8], "time_strides": [2, 2], "hidden_size": 12, "num_layers": 1,
    "num_heads": 2, "window_s": 1.0, "dropout": 0.0, "spec_augment": False,
}  # fmt: skip
# By the roles of presets with several: three rates of sound, of frames, widths and windows.
TINY_ENCODERS = {
    "speech": TINY_ENCODER,
    "sound": {**TINY_ENCODER, "sampling_rate_hz": 24_000, "hidden_size": 8, "window_s": 0.7},
    "language": {**TINY_ENCODER, "sampling_rate_hz": 8_000, "hidden_size": 16, "time_strides": [4, 4], "window_s": 0.5},
}
_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
}
# What makes each family different is named in integration/key_values.py; windows are shorter than the tests' texts.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                  "original_max_position_embeddings": 64, "rope_theta": 10000.0}},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2,
                    "query_pre_attn_scalar": 20},
    "olmo2": {},
    "mistral": {"sliding_window": 6, "head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "granite": {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.7},
    "phi3": {"sliding_window": 6,
             "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    # Soft-caps near the scores that these weights make, so that a forgotten one shows.
    "gemma2": {"head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2,
               "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "cohere2": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2, "logit_scale": 0.5},
    "glm4": {"head_dim": 8, "attention_bias": True,
             "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                  "norm_topk_prob": True, "mlp_only_layers": [1]},
    "gpt_neox": {"num_key_value_heads": None,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None, "n_inner": 48, "scale_attn_by_inverse_layer_idx": True,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_oss": {"head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_local_experts": 4, "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                                    "original_max_position_embeddings": 64, "rope_theta": 10000.0}},
}  # fmt: skip
EAGER_ONLY = ("gemma2", "gpt_oss")  # soft-cap and sinks, which SDPA does not have
REQUIRED = ("llama", "qwen2", "qwen3", "gemma3_text", "olmo2")


def wake_adapter(model: torch.nn.Module, seed: int) -> None:
    """Move an adapter off the identity that it starts as."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or ".lora_magnitude_vector." in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))


@cache
def tokenizer_texts() -> tuple[str, ...]:
    return (
        "what sound is this?",
        "a bell",
        "a dog barks twice",
        "you are a careful listener",
        "how many sounds come before the siren?",
    )


def llm_config(family: str, num_tokens: int, **changes: Any) -> Any:
    ids = {"vocab_size": num_tokens, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    fields = {**_COMMON, **ids, **FAMILIES[family], **changes}
    return CONFIG_MAPPING[family](**{name: value for name, value in fields.items() if value is not None or name in ids})


def perturb(module: torch.nn.Module, seed: int = 0) -> None:
    """Move norms, scales and gates off their neutral start, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))


def tiny_model(
    family: str = "llama", arm: str = "pal", seed: int = 0, llm: dict[str, Any] | None = None, **options: Any
) -> tuple[PalForConditionalGeneration, PalProcessor]:
    """A tiny model with random weights and its processor; `options` are those of `preset`, and `adapter`."""
    adapter = options.pop("adapter", None)
    if arm in ENCODERS_OF:
        options.setdefault("encoders", {role: TINY_ENCODERS[role] for role in ENCODERS_OF[arm]})
        options.setdefault("connector", {"type": "lfst", "queries": 5} if arm == "lfst" else {"type": "mlp", "stride": 4})
    else:
        options = {"encoder": TINY_ENCODER, "connector": {"type": "mlp", "stride": 4}} | options
    if arm == "pal":
        options.setdefault("summary", {"type": "pool", "num_tokens": 3})
    if arm == "flamingo":
        options.setdefault("flamingo", {"layers": "every:2"})
    return tiny_mix(preset(arm, **options), family, seed, llm, adapter)


def tiny_mix(
    audio: dict[str, Any],
    family: str = "llama",
    seed: int = 0,
    llm: dict[str, Any] | None = None,
    adapter: dict[str, Any] | None = None,
) -> tuple[PalForConditionalGeneration, PalProcessor]:
    """Likewise of any streams: `audio` is an `AudioConfig`'s dict."""
    torch.manual_seed(seed)
    processor = PalProcessor(train_tokenizer(tokenizer_texts(), 300), audio)
    vocabulary = len(processor.tokenizer) - 2  # the two audio tokens lie outside the LLM's vocabulary
    text_config = llm_config(family, vocabulary, **(llm or {}))
    language_model = AutoModelForCausalLM.from_config(text_config)
    perturb(language_model, seed)
    config = PalConfig(language_model.config, audio, processor.audio_token_id, processor.audio_slot_token_id, adapter=adapter)
    model = PalForConditionalGeneration(config, language_model)
    perturb(model.streams, seed + 1)
    wake_adapter(model, seed + 2)
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    return model.eval(), processor


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """White noise with a slow envelope, float32 at RATE_HZ."""
    rng = np.random.default_rng(seed)
    wave = rng.standard_normal(int(seconds * RATE_HZ)) * (0.2 + rng.random())
    return (0.1 * wave).astype(np.float32)


def message(
    *clips: np.ndarray, question: str = "what sound is this?", system: str | None = "you are a careful listener"
) -> list[dict[str, Any]]:
    """System prompt, then clips, then the question: the common layout."""
    content: list[dict[str, Any]] = [{"type": "audio", "audio": clip} for clip in clips]
    turns = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    return ([{"role": "system", "content": system}] if system else []) + turns


def batch(processor: PalProcessor, conversations: list[list[dict[str, Any]]], **options: Any) -> Any:
    options.setdefault("add_generation_prompt", not options.get("return_labels", False))
    return processor.apply_chat_template(conversations, sampling_rate=RATE_HZ, **options)


def hear_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `conv` encoders on the CPU take samples, and make their features themselves, in training and `pal encode`."""
    monkeypatch.setattr(ConvEncoderConfig, "front_end_for", lambda self, device: Samples(self.window_samples))
