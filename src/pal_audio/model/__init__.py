"""The Hugging Face face of PAL: configuration, model, processor, and their registration with the Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from pal_audio.model.building import ModelSpec, build_model, describe, load
from pal_audio.model.clips import ClipFeatures
from pal_audio.model.configuration import AudioConfig, PalConfig, StreamConfig
from pal_audio.model.modeling import PalForConditionalGeneration
from pal_audio.model.presets import preset
from pal_audio.model.processing import PalProcessor

AutoConfig.register("pal", PalConfig, exist_ok=True)
AutoModelForCausalLM.register(PalConfig, PalForConditionalGeneration, exist_ok=True)
AutoProcessor.register(PalConfig, PalProcessor, exist_ok=True)

__all__ = [
    "AudioConfig",
    "ClipFeatures",
    "ModelSpec",
    "PalConfig",
    "PalForConditionalGeneration",
    "PalProcessor",
    "StreamConfig",
    "build_model",
    "describe",
    "load",
    "preset",
]
