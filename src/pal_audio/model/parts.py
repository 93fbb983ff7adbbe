"""Parts of a model that train by themselves: encoders without an LLM, or an LLM without encoders.

Their parameters have the names that they have in a whole model (`encoders.NAME.`, `language_model.`).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from pal_audio import encoders
from pal_audio.audio import load_audio
from pal_audio.encoders import EncoderConfig
from pal_audio.errors import PalError
from pal_audio.model import layer_checkpointing
from pal_audio.model.adapters import AdapterConfig, add_adapter
from pal_audio.model.building import ModelSpec, fresh_llm, outline_config
from pal_audio.model.clips import ClipFeatures
from pal_audio.model.pretrained import llm_weights, llm_without_weights


class Parts(nn.Module):
    """An LLM, or encoders, or both side by side. A forward is the LLM's.

    Args:
        language_model: if any; an adapter is on it already.
        modules: encoders by name.
    """

    def __init__(self, language_model: Any = None, modules: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        if language_model is not None:
            self.language_model = language_model
        self.encoders = nn.ModuleDict(modules or {})

    def forward(self, **inputs: Any) -> Any:
        return self.language_model(**inputs)

    def get_decoder(self) -> nn.Module:
        """The LLM's layers."""
        return self.language_model.get_decoder()

    def gradient_checkpointing_enable(self) -> None:
        """Non-reentrant checkpointing of the LLM's layers."""
        layer_checkpointing.enable(self.language_model)

    def gradient_checkpointing_disable(self) -> None:
        layer_checkpointing.disable(self.language_model)

    def num_parameters(self) -> dict[str, int]:
        """Of each part."""
        parts = {f"encoder {name}": module for name, module in self.encoders.items()}
        if hasattr(self, "language_model"):
            parts = {"llm": self.language_model, **parts}
        return {name: sum(tensor.numel() for tensor in module.parameters()) for name, module in parts.items()}


class PartsProcessor:
    """The half of a processor that parts need: a tokenizer for an LLM, features of clips for encoders."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, configs: dict[str, EncoderConfig]) -> None:
        self.tokenizer = tokenizer
        self._configs = configs
        self.front_ends = {name: config.front_end() for name, config in configs.items()}

    def clip(self, source: Any, **options: Any) -> ClipFeatures:
        """Features of one clip for every encoder.

        Args:
            source: a file, or what else `load_audio` reads and knows the rate of.
            **options: of `load_audio`.

        Raises:
            AudioError: the sound cannot be read.
        """
        features, num_samples = {}, {}
        for name, config in self._configs.items():
            wav_S = load_audio(source, config.sampling_rate_hz, **options)
            features[name] = self.front_ends[name](wav_S)
            num_samples[name] = len(wav_S)
        return ClipFeatures(features, num_samples)


def build_parts(spec: ModelSpec, texts: Iterable[str] = (), adapter: AdapterConfig | None = None) -> tuple[Parts, PartsProcessor]:
    """What a spec without `preset` and `streams` names.

    Args:
        spec: with an LLM, encoders, or both.
        texts: what a fresh tokenizer is trained on.
        adapter: on the LLM, if any.

    Raises:
        PalError: the LLM cannot be had, or the spec is wrong.
    """
    processor, config = _processor(spec, texts)
    llm = None
    if isinstance(spec.llm, str):
        llm = llm_weights(spec.llm, spec.revision, in_four_bit=adapter is not None and adapter.type == "qlora")
    elif spec.llm is not None:
        llm = AutoModelForCausalLM.from_config(config)
    return _joined(llm, spec.encoder_configs(), adapter), processor


def parts_processor(spec: ModelSpec, texts: Iterable[str] = ()) -> PartsProcessor:
    """The processor alone, without any weights; see `build_parts`."""
    return _processor(spec, texts)[0]


def parts_skeleton(spec: ModelSpec, adapter: AdapterConfig | None = None) -> Parts:
    """The parts without memory: their parameters are on the meta device and have names and shapes.

    Raises:
        PalError: as `build_parts`.
    """
    with torch.device("meta"):
        llm = None if spec.llm is None else AutoModelForCausalLM.from_config(outline_config(spec))
        return _joined(llm, {name: config.resolved() for name, config in spec.encoder_configs().items()}, adapter)


def _processor(spec: ModelSpec, texts: Iterable[str]) -> tuple[PartsProcessor, Any]:
    """The processor, and the LLM's configuration, if any."""
    resolved = {name: config.resolved() for name, config in spec.encoder_configs().items()}
    if spec.llm is None:
        return PartsProcessor(None, resolved), None
    if isinstance(spec.llm, dict):
        config, tokenizer = fresh_llm(dict(spec.llm), texts)
    else:
        config, tokenizer = llm_without_weights(spec.llm, spec.revision)
    return PartsProcessor(tokenizer, resolved), config


def _joined(llm: Any, configs: dict[str, EncoderConfig], adapter: AdapterConfig | None) -> Parts:
    if adapter is not None and llm is None:
        raise PalError("adapter: it stands on an LLM, but the model has none; take it out or name `model.llm`")
    if adapter is not None:
        add_adapter(llm, adapter)
    return Parts(llm, {name: encoders.build(config) for name, config in configs.items()})
