"""What a PAL model is made of: `AudioConfig` (streams, written once, validated once) inside `PalConfig` (Hugging Face)."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, TypeAdapter, field_validator, model_validator
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pal_audio import connectors, encoders
from pal_audio.config import StrictConfig, parse_config
from pal_audio.connectors import AnyConnectorConfig, ConnectorConfig, JointConnectorConfig
from pal_audio.encoders.base import EncoderConfig
from pal_audio.errors import PalError
from pal_audio.integration.config import IntegrationConfig, LalConfig
from pal_audio.model.adapters import AdapterConfig

MARKER_TOKEN = "<|audio|>"
SLOT_TOKEN = "<|audio_slot|>"


class StreamConfig(StrictConfig):
    """One way of audio into the LLM: which encoder, which connector, which integration.

    Attributes:
        encoder: a name, or for a connector that reads several encoders (`lfst`) their names in its order.
    """

    encoder: str | list[str]
    connector: SerializeAsAny[AnyConnectorConfig]
    integration: IntegrationConfig

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders that the connector reads, in its order."""
        return (self.encoder,) if isinstance(self.encoder, str) else tuple(self.encoder)

    @field_validator("encoder", mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        names = value if isinstance(value, list | tuple) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise PalError(f"must be the name of an encoder, or a list of names, not {value!r}")
        if len(set(names)) < len(names):
            raise PalError(f"names an encoder twice: {names}")
        return value

    @field_validator("connector", mode="before")
    @classmethod
    def _parse_connector(cls, value: Any) -> AnyConnectorConfig:
        return value if isinstance(value, AnyConnectorConfig) else connectors.parse(value)

    @model_validator(mode="after")
    def _check_number(self) -> "StreamConfig":
        kind, wanted = self.connector.type, self.connector.num_encoders
        if wanted == 1 and not isinstance(self.encoder, str):
            raise PalError(f"connector {kind!r} reads one encoder, not {self.encoder}; write a stream for each, `encoder: NAME`")
        if len(self.encoders) != wanted:
            raise PalError(f"connector {kind!r} reads {wanted} encoders: write `encoder:` and a list of {wanted} names")
        return self


class AudioConfig(StrictConfig):
    """Encoders and streams of a model, and what all streams share.

    Attributes:
        encoders: by name; an encoder runs once however many streams read it.
        streams: see `StreamConfig`.
        positions: "span" (a clip takes N rotary positions) or "zero" (audio keys at position 0, text is not shifted).
        summary_sees_audio: PLITS slots attend to their own clip's LAL keys.
    """

    encoders: dict[str, SerializeAsAny[EncoderConfig]] = Field(min_length=1)
    streams: list[StreamConfig] = Field(min_length=1)
    positions: Literal["span", "zero"] = "span"
    summary_sees_audio: bool = True

    @field_validator("encoders", mode="before")
    @classmethod
    def _parse_encoders(cls, value: Any) -> dict[str, EncoderConfig]:
        if not isinstance(value, dict):
            raise PalError("encoders: must be a mapping from a name of yours to an encoder's options")
        for name in value:
            if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
                raise PalError(f"encoders: {name!r} cannot name a part of a model; take another word, without a dot")
        return {name: item if isinstance(item, EncoderConfig) else encoders.parse(item) for name, item in value.items()}

    @model_validator(mode="after")
    def _check_streams(self) -> "AudioConfig":
        for number, stream in enumerate(self.streams):
            for name in stream.encoders:
                if name not in self.encoders:
                    raise PalError(f"streams[{number}]: encoder {name!r} is not among {sorted(self.encoders)}")
                if self.encoders[name].encoder_layers != "per_llm_layer":
                    continue
                if not isinstance(stream.integration, LalConfig):
                    raise PalError(f"streams[{number}]: encoder_layers: per_llm_layer feeds LLM layers, so it needs `type: lal`")
                if stream.connector.num_encoders > 1:
                    what = f"gives a sequence per layer of {name!r}, but connector {stream.connector.type!r} reads one of each"
                    raise PalError(f"streams[{number}]: encoder_layers: per_llm_layer {what} encoder; name its layers, or 'last'")
        unused = set(self.encoders) - {name for stream in self.streams for name in stream.encoders}
        if unused:
            raise PalError(f"encoders {sorted(unused)} are read by no stream")
        return self

    @classmethod
    def parse(cls, value: "AudioConfig | dict[str, Any]") -> "AudioConfig":
        """Validate a dict.

        Raises:
            PalError: one line that names each wrong key.
        """
        return value if isinstance(value, cls) else parse_config(TypeAdapter(cls), value, "model")

    def resolved(self) -> "AudioConfig":
        """The same with encoders that need no checkpoint; see `EncoderConfig.resolved`."""
        return self.model_copy(update={"encoders": {name: item.resolved() for name, item in self.encoders.items()}})

    def num_slots(self, encoder_samples: dict[str, int]) -> int:
        """PLITS tokens of a clip.

        Args:
            encoder_samples: by encoder name, the clip's samples at that encoder's rate.
        """
        return sum(self.stream_length(stream, encoder_samples) for stream in self.streams if stream.integration.type == "plits")

    def stream_length(self, stream: StreamConfig, encoder_samples: dict[str, int]) -> int:
        """Audio tokens of a clip in one stream."""
        read = [self.encoders[name] for name in stream.encoders]
        frames = [self.encoders[name].output_lengths(encoder_samples[name]) for name in stream.encoders]
        rates_hz = [encoder.frame_rate_hz for encoder in read]
        if isinstance(stream.connector, JointConnectorConfig):
            return stream.connector.output_lengths(frames, rates_hz)
        assert isinstance(stream.connector, ConnectorConfig)
        return stream.connector.output_lengths(frames[0], rates_hz[0])

    def span(self, encoder_samples: dict[str, int]) -> int:
        """Positions that a clip takes behind its marker."""
        slots = self.num_slots(encoder_samples)
        if self.positions == "zero":
            return slots
        placed = [stream for stream in self.streams if stream.integration.type != "flamingo"]
        return max(slots, *(self.stream_length(stream, encoder_samples) for stream in placed), 0)


def check_every_encoder(given: Iterable[str], names: Iterable[str], what: str) -> None:
    """That a clip, or a batch of clips, is given for all encoders of a model and for no other.

    Args:
        given: names of encoders that something is given for.
        names: of the model's encoders.
        what: the error's beginning, as in "this clip has features for".

    Raises:
        PalError: they differ.
    """
    if set(given) != set(names):
        raise PalError(
            f"{what} encoders {sorted(given)}, but the model has {sorted(names)}: every encoder hears every clip; "
            "let the model's own processor prepare them"
        )


_adapter_type: TypeAdapter[AdapterConfig] = TypeAdapter(AdapterConfig)


class PalConfig(PretrainedConfig):
    """Configuration of `PalForConditionalGeneration`.

    Args:
        text_config: the LLM's configuration, or its dict with `model_type`.
        audio_config: an `AudioConfig` or its dict; stored as a dict.
        audio_token_id: id of the marker in text. It needs no row in the LLM's embedding.
        audio_slot_token_id: id of the slots that follow it.
        provenance: where the LLM and the encoders came from (`llm`, `encoders`), if anywhere.
        adapter: an `AdapterConfig` or its dict, of the adapter on the LLM; stored as a dict. None: no adapter.
        bases: of a folder that holds trained parts only, where the rest comes from (`model.trained`); None of a whole one.
        calibration: what the probability of its answers is worth (`model.confidence`), as a dict; None: not known.
    """

    model_type = "pal"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - transformers' own form

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        audio_config: AudioConfig | dict[str, Any] | None = None,
        audio_token_id: int | None = None,
        audio_slot_token_id: int | None = None,
        provenance: dict[str, Any] | None = None,
        adapter: AdapterConfig | dict[str, Any] | None = None,
        bases: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            model_type = text_config.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise PalError(f"text_config: model_type {model_type!r} is not a family that transformers knows")
            text_config = CONFIG_MAPPING[model_type](**{k: v for k, v in text_config.items() if k != "model_type"})
        self.text_config = text_config
        self.audio_config = None if audio_config is None else AudioConfig.parse(audio_config).model_dump(mode="json")
        self.audio_token_id = audio_token_id
        self.audio_slot_token_id = audio_slot_token_id
        self.provenance = provenance
        self.bases = bases
        self.calibration = calibration
        self.adapter = None if adapter is None else parse_config(_adapter_type, adapter, "adapter").model_dump(mode="json")
        # The constructor sets the kernel of experts in sub-configurations; a ready LLM keeps the one that it chose.
        kwargs.setdefault("experts_implementation", {"text_config": getattr(text_config, "_experts_implementation", None)})
        super().__init__(**kwargs)

    @property
    def audio(self) -> AudioConfig:
        """The validated audio configuration."""
        if self.audio_config is None:
            raise PalError("this PalConfig has no audio_config")
        return AudioConfig.parse(self.audio_config)

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """The validated adapter configuration, or None."""
        return None if self.adapter is None else parse_config(_adapter_type, self.adapter, "adapter")

    @property
    def audio_ids(self) -> tuple[int, int]:
        """Ids of marker and slots."""
        if self.audio_token_id is None or self.audio_slot_token_id is None:
            raise PalError("the model's config has no audio_token_id; build it with its processor")
        return self.audio_token_id, self.audio_slot_token_id

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        return self if self.text_config is None else self.text_config
