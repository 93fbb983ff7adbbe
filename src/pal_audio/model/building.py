"""From a recipe's `model:` to a model and its processor; from a folder back to both; and what a model says of itself."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pal_audio import encoders
from pal_audio.config import StrictConfig
from pal_audio.encoders import EncoderConfig
from pal_audio.errors import PalError
from pal_audio.model.adapters import AdapterConfig, is_adapter_parameter
from pal_audio.model.configuration import AudioConfig, PalConfig
from pal_audio.model.four_bit import unseen_weights
from pal_audio.model.modeling import PalForConditionalGeneration
from pal_audio.model.presets import preset
from pal_audio.model.pretrained import llm_weights, llm_without_weights
from pal_audio.model.processing import PalProcessor
from pal_audio.model.tokenizer import checked_size, train_tokenizer

_SHARED = ("positions", "summary_sees_audio")


class ModelSpec(StrictConfig):
    """A recipe's `model:`.

    Attributes:
        llm: hub id, folder, or an inline configuration of a fresh one: `model_type`, its fields, and
            `tokenizer: {vocab_size: n}` for a tokenizer trained on the recipe's own texts. None: encoders alone, see `parts`.
        revision: of the LLM on the hub.
        preset: "plits", "lal", "pal" or "flamingo" with `encoder`, or "pal-multi" or "lfst" with `encoders`; and `connector`,
            `summary`, `lal`, `flamingo` (see `preset`); or, instead, `encoders` and `streams`.
        positions, summary_sees_audio: see `AudioConfig`.
    """

    llm: str | dict[str, Any] | None = None
    revision: str | None = None
    preset: str | None = None
    encoder: dict[str, Any] | None = None
    connector: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    lal: dict[str, Any] | None = None
    flamingo: dict[str, Any] | None = None
    encoders: dict[str, Any] | None = None
    streams: list[Any] | None = None
    positions: str | None = None
    summary_sees_audio: bool | None = None

    @property
    def is_whole(self) -> bool:
        """It has ways from sound into an LLM; else it is parts of a model, see `parts`."""
        return self.preset is not None or self.streams is not None

    def encoder_configs(self) -> dict[str, EncoderConfig]:
        """Encoders by name, also where there are no streams: "audio" is the one of `encoder`.

        Raises:
            PalError: an encoder's options are wrong.
        """
        if self.is_whole:
            return self.audio_config().encoders
        named = {"audio": self.encoder} if self.encoder is not None else self.encoders or {}
        return {name: encoders.parse(values) for name, values in named.items()}

    def audio_config(self) -> AudioConfig:
        """The streams that this asks for.

        Raises:
            PalError: neither or both of `preset` and `streams`, or wrong options.
        """
        shared = {key: getattr(self, key) for key in _SHARED if getattr(self, key) is not None}
        if (self.preset is None) == (self.streams is None):
            raise PalError("model: give either `preset` (with `encoder`, or `encoders` by role) or `encoders` and `streams`")
        if self.preset is None:
            stray = [key for key in ("encoder", "connector", "summary", "lal", "flamingo") if getattr(self, key) is not None]
            if stray:
                raise PalError(f"model: {stray[0]!r} belongs to a preset; with `streams`, write it inside a stream")
            return AudioConfig.parse({"encoders": self.encoders or {}, "streams": self.streams, **shared})
        parts = self.encoder, self.connector, self.summary, self.lal, self.flamingo, self.encoders
        return AudioConfig.parse(preset(self.preset, *parts, **shared))


def build_model(
    spec: ModelSpec, texts: Iterable[str] = (), adapter: AdapterConfig | None = None
) -> tuple[PalForConditionalGeneration, PalProcessor]:
    """A model and its processor.

    Args:
        spec: see `ModelSpec`.
        texts: what a fresh tokenizer is trained on.
        adapter: on the LLM, if any.

    Raises:
        PalError: the LLM cannot be had, or the spec is wrong.
    """
    audio = spec.audio_config()
    if spec.llm is None:
        raise PalError("model: `llm` is missing; only encoders can be built without one")
    if adapter is not None:
        adapter.check()  # before anything is fetched
    if isinstance(spec.llm, dict):
        text_config, tokenizer = fresh_llm(dict(spec.llm), texts)
        llm = None
    else:
        text_config, tokenizer = llm_without_weights(spec.llm, spec.revision)
        llm = llm_weights(spec.llm, spec.revision, in_four_bit=adapter is not None and adapter.type == "qlora")
    processor = PalProcessor(tokenizer, audio)
    provenance = {
        "llm": None if llm is None else {"name": spec.llm, "revision": spec.revision},
        "encoders": {name: config.checkpoint for name, config in audio.encoders.items() if config.checkpoint},
    }
    config = PalConfig(text_config, audio, processor.audio_token_id, processor.audio_slot_token_id, provenance, adapter)
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model = PalForConditionalGeneration(config, llm)
    # From here on the weights are ours: a saved folder must not ask for the encoders' checkpoints again.
    resolved = audio.resolved()
    config.audio_config = resolved.model_dump(mode="json")
    if llm is not None and llm.generation_config is not None:
        model.generation_config = llm.generation_config
    model.generation_config.eos_token_id = model.generation_config.eos_token_id or tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor._pad_id
    return model, PalProcessor(tokenizer, resolved)


def build_processor(spec: ModelSpec, texts: Iterable[str] = ()) -> PalProcessor:
    """The processor alone, without any weights; see `build_model`."""
    audio = spec.audio_config()
    if spec.llm is None:
        raise PalError("model: `llm` is missing; only encoders can be built without one")
    if isinstance(spec.llm, dict):
        _, tokenizer = fresh_llm(dict(spec.llm), texts)
    else:
        _, tokenizer = llm_without_weights(spec.llm, spec.revision)
    return PalProcessor(tokenizer, audio.resolved())


def skeleton(spec: ModelSpec, adapter: AdapterConfig | None = None) -> PalForConditionalGeneration:
    """The model without memory: its parameters are on the meta device and have names and shapes.

    Raises:
        PalError: as `build_model`.
    """
    text_config, audio = outline_config(spec), spec.audio_config().resolved()
    with torch.device("meta"):
        return PalForConditionalGeneration(PalConfig(text_config, audio, adapter=adapter))


def outline_config(spec: ModelSpec) -> PretrainedConfig:
    """The LLM's configuration, of a fresh one with as many tokens as its tokenizer may get.

    Raises:
        PalError: the LLM is missing, cannot be had, or its fields are wrong.
    """
    if spec.llm is None:
        raise PalError("model: `llm` is missing; only encoders can be built without one")
    if isinstance(spec.llm, dict):
        return _text_config(dict(spec.llm), {"vocab_size": _tokenizer_size(spec.llm)})
    return llm_without_weights(spec.llm, spec.revision)[0]


def check_spec(spec: ModelSpec) -> None:
    """That a fresh model can be built as asked, before any work is done for it; what is on a hub is not looked at.

    Raises:
        PalError: streams or the inline LLM's fields are wrong.
    """
    spec.encoder_configs()
    if isinstance(spec.llm, dict):
        _text_config(dict(spec.llm), {"vocab_size": 256})


def fresh_llm(fields: dict[str, Any], texts: Iterable[str]) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration of an inline LLM, and a tokenizer trained on these texts.

    Raises:
        PalError: its fields are wrong.
    """
    _text_config(dict(fields), {"vocab_size": 256})  # refuses what is wrong before the tokenizer is trained
    tokenizer = train_tokenizer(texts, _tokenizer_size(fields))
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return _text_config(fields, ids), tokenizer


def _text_config(fields: dict[str, Any], ids: dict[str, Any]) -> PretrainedConfig:
    """The configuration of an inline LLM, proved by building the LLM without memory."""
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise PalError(f"model.llm: model_type {model_type!r} is not a family that transformers knows")
    _tokenizer_size(fields)
    fields.pop("tokenizer")
    known = {*CONFIG_MAPPING[model_type]().to_dict(), *CONFIG_MAPPING[model_type].attribute_map}
    for key in fields:
        if key not in known and key != "head_dim":  # layers of some families read it though no configuration lists it
            near = difflib.get_close_matches(key, known, n=1)
            raise PalError(f"model.llm: {model_type} has no field {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        config = CONFIG_MAPPING[model_type](**{**ids, **fields})
        _check_sizes(config, fields)
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, RuntimeError, KeyError, ArithmeticError, StrictDataclassError) as error:
        raise PalError(f"model.llm: {model_type} cannot be built from these fields: {' '.join(str(error).split())}") from error
    size = fields.get("head_dim")
    if size is not None and all(getattr(module, "head_dim", None) != size for module in llm.modules()):
        raise PalError(f"model.llm: {model_type} has no field 'head_dim'")
    return config


def _tokenizer_size(fields: dict[str, Any]) -> int:
    options = fields.get("tokenizer")
    if not isinstance(options, dict) or set(options) != {"vocab_size"}:
        raise PalError("model.llm: a fresh LLM needs `tokenizer: {vocab_size: n}`")
    return checked_size(options["vocab_size"])


def _check_sizes(config: PretrainedConfig, fields: dict[str, Any]) -> None:
    """What transformers builds without a word, and what then fails far away."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        size = getattr(config, name, None)
        if size is not None and size < 1:
            raise PalError(f"model.llm: {name} must be 1 at least, got {size}")
    heads, shared = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    if heads is not None and shared is not None and heads % shared:
        said = "" if "num_key_value_heads" in fields else f", {config.model_type}'s own number where the recipe gives none"
        raise PalError(f"model.llm: num_attention_heads {heads} is no multiple of num_key_value_heads {shared}{said}")


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[PalForConditionalGeneration, PalProcessor]:
    """Model (eval mode) and processor of a saved folder.

    Raises:
        PalError: the folder holds no PAL model.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise PalError(f"{folder}: no PAL model here (no config.json)")
    if AutoConfig.from_pretrained(folder).model_type != PalConfig.model_type:
        raise PalError(f"{folder}: config.json is not of a PAL model")
    model = PalForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    return model.to(device).eval(), PalProcessor.from_pretrained(folder)


def describe(model: PalForConditionalGeneration) -> dict[str, Any]:
    """What a model is made of: streams, parameters by part, bytes, provenance; JSON-able."""
    audio = model.config.audio
    parts = {"llm": model.language_model, "marker": model.marker}
    parts |= {f"encoder {name}": module for name, module in model.encoders.items()}
    streams = []
    for number, (config, module) in enumerate(zip(audio.streams, model.streams, strict=True)):
        parts[f"connector {number}"] = module.connector
        if module.projectors is not None:
            parts[f"projectors {number}"] = module.projectors
        if module.blocks is not None:
            parts[f"flamingo blocks {number}"] = module.blocks
        streams.append(
            {
                "encoder": config.encoder,
                "connector": config.connector.model_dump(mode="json"),
                "integration": config.integration.model_dump(mode="json"),
                "lal_layers": [] if module.projectors is None else list(module.layers),
                "flamingo_layers": [] if module.blocks is None else list(module.layers),
            }
        )
    tensors = {name: [part] if isinstance(part, torch.Tensor) else list(part.parameters()) for name, part in parts.items()}
    if model.config.adapter is not None:
        named = list(model.language_model.named_parameters())
        tensors["llm"] = [tensor for name, tensor in named if not is_adapter_parameter(name)]
        tensors["llm adapter"] = [tensor for name, tensor in named if is_adapter_parameter(name)]
    num_weights = {name: sum(tensor.numel() for tensor in items) for name, items in tensors.items()}
    num_weights["llm"] += unseen_weights(model.language_model)
    text: Any = model.config.text_config
    return {
        "llm": {
            "family": text.model_type,
            "layers": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
            "vocab_size": text.vocab_size,
        },
        "adapter": model.config.adapter,
        "encoders": {name: config.model_dump(mode="json") for name, config in audio.encoders.items()},
        "streams": streams,
        "positions": audio.positions,
        "parameters": num_weights,
        "bytes": sum(tensor.numel() * tensor.element_size() for items in tensors.values() for tensor in items),
        "dtype": str(model.dtype).removeprefix("torch."),
        "provenance": model.config.provenance,
    }
