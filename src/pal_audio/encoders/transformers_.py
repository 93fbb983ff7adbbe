"""`transformers`: audio encoders of the transformers library, from a checkpoint or fresh from an inline config.

Two kinds. *Wave* models (wav2vec 2.0 and its relatives) read samples; AST reads a mel image of fixed size and gives several
frequency bands for each time step. The end of the file holds what every encoder on transformers needs to read a checkpoint.

Shapes: W windows, S samples, F mel frames, T encoder frames, D width.
"""

import contextlib
import copy
import difflib
import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as nnf
from einops import rearrange
from pydantic import Field, TypeAdapter, field_validator, model_validator
from torch import Tensor

from pal_audio.config import parse_config
from pal_audio.encoders.base import AudioEncoder, EncoderConfig, FrontEnd, ceil_div, keep_batch_statistics, length_mask
from pal_audio.errors import PalError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

AST = "audio-spectrogram-transformer"
MASKABLE = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Wave models that keep padding out of every frame when given an attention mask, if their front end has layer norm."""
UNMASKABLE = ("data2vec-audio", "wav2vec2-conformer")
"""Wave models whose stacked position convolutions or convolution modules read padding in spite of the mask."""
SUPPORTED = (AST, *MASKABLE, *UNMASKABLE)
TYPE_OF = {"whisper": "whisper", "clap": "clap", "clap_audio_model": "clap", **dict.fromkeys(SUPPORTED, "transformers")}
"""By transformers' model type, the type of encoder that reads it."""

AST_FBANK_SAMPLES, AST_HOP_SAMPLES = 400, 160
"""25 ms and 10 ms at 16 kHz, fixed in transformers' AST feature extractor."""
AST_SPECIAL_TOKENS = 2
DEFAULT_WINDOW_S = 30.0
SWITCHED_OFF = ("layerdrop", "encoder_layerdrop", "apply_spec_augment")
NOT_ARCHITECTURE = {"_name_or_path", "architectures", "dtype", "transformers_version", "id2label", "label2id"}


class HubConfig(EncoderConfig):
    """An encoder whose architecture is a transformers config: inline, or that of the checkpoint."""

    config: dict[str, Any] | None = None
    """Fields of the transformers config (a fresh encoder); exactly one of `config` and `checkpoint` is given. Dropped layers
    and transformers' own masking of training input (`SWITCHED_OFF`) are never used: see `load_model`."""
    preprocessor: dict[str, Any] | None = None
    """Fields of the feature extractor; None: those of the checkpoint, or defaults that fit `config`."""

    @field_validator("config", mode="after")
    @classmethod
    def _warn_switched_off(cls, fields: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in SWITCHED_OFF:
            if fields and fields.get(name):
                warnings.warn(f"config: {name} has no effect here", stacklevel=2)
        return fields

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.checkpoint is None) == (self.config is None):
            raise PalError(f"a {self.type} encoder takes one of checkpoint (hub id or folder) and config (fields, fresh weights)")
        if self.config is not None:
            self.layer_indices  # noqa: B018  (raises when the config or encoder_layers is wrong)
        return self

    @property
    def default_model_type(self) -> str | None:
        """What an inline config without `model_type` means; None: it has to say."""
        return None

    @functools.cached_property
    def architecture(self) -> "PreTrainedConfig":
        """The transformers config."""
        if self.checkpoint is not None:
            return read_architecture(self.checkpoint)
        assert self.config is not None
        return inline_architecture({"model_type": self.default_model_type} | self.config)

    @functools.cached_property
    def extractor_fields(self) -> dict[str, Any]:
        """What the feature extractor is built from: of `preprocessor`, else of the checkpoint, else empty."""
        if self.preprocessor is not None:
            return self.preprocessor
        return {} if self.checkpoint is None else read_preprocessor(self.checkpoint)

    def resolved(self) -> Self:
        kept = type(self.architecture)().to_dict().keys() - set(SWITCHED_OFF) - NOT_ARCHITECTURE
        fields = {name: value for name, value in self.architecture.to_diff_dict().items() if name in kept}
        known = {"checkpoint": None, "config": fields, "preprocessor": self.extractor_fields}
        return parse_config(
            TypeAdapter(type(self)), self.model_dump(exclude_unset=True) | known, f"checkpoint {self.checkpoint!r}: encoder"
        )

    @property
    def sampling_rate_hz(self) -> int:
        return int(self.extractor_fields.get("sampling_rate", 16_000))

    @property
    def hidden_size(self) -> int:
        return int(self.architecture.hidden_size)

    @property
    def num_hidden_layers(self) -> int:
        return int(self.architecture.num_hidden_layers)


class TransformersEncoderConfig(HubConfig):
    type: Literal["transformers"] = "transformers"
    window_s: float | None = Field(None, gt=0)
    """Longest window of a wave model; None: 30 s. An AST's window is its image."""

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.config is not None and self.is_ast and self.window_s is not None:
            warnings.warn("window_s has no effect: an AST's window is its max_length", stacklevel=2)
        return self

    @functools.cached_property
    def architecture(self) -> "PreTrainedConfig":
        architecture = super().architecture
        if architecture.model_type not in SUPPORTED:
            other = TYPE_OF.get(architecture.model_type)
            mend = f"supported are {', '.join(SUPPORTED)}" if other is None else f"use type: {other}"
            raise PalError(f"model type {architecture.model_type!r} is not supported; {mend}")
        if getattr(architecture, "add_adapter", False):
            raise PalError("add_adapter is not supported: a connector compresses the frames; set it to false")
        return architecture

    @property
    def is_ast(self) -> bool:
        return bool(self.architecture.model_type == AST)

    @property
    def window_samples(self) -> int:
        if self.is_ast:
            return int(self.architecture.max_length) * AST_HOP_SAMPLES
        return max(round((self.window_s or DEFAULT_WINDOW_S) * self.sampling_rate_hz), self.min_samples)

    @property
    def min_samples(self) -> int:
        """Shortest window that gives a frame; a shorter one is padded with zeros to it."""
        if self.is_ast:
            return AST_FBANK_SAMPLES
        samples = 1
        for kernel, stride in zip(reversed(self.architecture.conv_kernel), reversed(self.architecture.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return int(samples)

    @property
    def ast_grid(self) -> tuple[int, int]:
        """Frequency bands and time steps of an AST's image."""
        arch = self.architecture
        bands = (arch.num_mel_bins - arch.patch_size) // arch.frequency_stride + 1
        return bands, (arch.max_length - arch.patch_size) // arch.time_stride + 1

    def window_frames(self, num_samples: int) -> int:
        num_samples = max(num_samples, self.min_samples)
        if self.is_ast:
            # Every time step whose patch begins within the sound is kept, so that no sound is lost at the end.
            bands, steps = self.ast_grid
            mel_frames = (num_samples - AST_FBANK_SAMPLES) // AST_HOP_SAMPLES + 1
            return bands * min(ceil_div(mel_frames, self.architecture.time_stride), steps)
        for kernel, stride in zip(self.architecture.conv_kernel, self.architecture.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def front_end(self) -> "WaveFrontEnd | AstFrontEnd":
        return AstFrontEnd(self) if self.is_ast else WaveFrontEnd(self)

    def build(self) -> AudioEncoder:
        return AstEncoder(self) if self.is_ast else WaveEncoder(self)


class WaveFrontEnd(FrontEnd):
    """Samples, each window normalised by itself where the extractor says so."""

    def __init__(self, config: TransformersEncoderConfig) -> None:
        from transformers import Wav2Vec2FeatureExtractor

        super().__init__(config.window_samples)
        self.min_samples = config.min_samples
        self.extractor = Wav2Vec2FeatureExtractor(**config.extractor_fields)

    def features(self, wav_S: np.ndarray) -> Tensor:
        """(S,) float32, zeros up to the encoder's shortest input."""
        values = self.extractor(wav_S, sampling_rate=self.extractor.sampling_rate)["input_values"][0]
        return nnf.pad(torch.from_numpy(values).float(), (0, max(self.min_samples - len(values), 0)))


class AstFrontEnd(FrontEnd):
    """Kaldi-style log-mel image of a fixed number of mel frames."""

    def __init__(self, config: TransformersEncoderConfig) -> None:
        from transformers import ASTFeatureExtractor

        super().__init__(config.window_samples)
        image = {"max_length": config.architecture.max_length, "num_mel_bins": config.architecture.num_mel_bins}
        self.extractor = ASTFeatureExtractor(**(config.extractor_fields | image))

    def features(self, wav_S: np.ndarray) -> Tensor:
        """(F, mel bins) float32, F = the config's max_length."""
        wav_S = np.pad(wav_S, (0, max(AST_FBANK_SAMPLES - len(wav_S), 0)))
        values = self.extractor(wav_S, sampling_rate=self.extractor.sampling_rate)["input_values"][0]
        return torch.from_numpy(np.asarray(values, dtype=np.float32))


class HubEncoder(AudioEncoder):
    """A network of transformers, which a member makes as `model`."""

    model: Any

    def train(self, mode: bool = True) -> Self:
        """As usual, except that batch norms (CLAP, some HuBERT, Conformer) keep their statistics: a batch's would mix clips."""
        super().train(mode)
        keep_batch_statistics(self)
        return self

    def save_checkpoint(self, folder: Path) -> None:
        """A folder as transformers writes it: config.json, model.safetensors, preprocessor_config.json."""
        front_end: Any = self.config.front_end()
        self.model.save_pretrained(folder)
        front_end.extractor.save_pretrained(folder)


class WaveEncoder(HubEncoder):
    """wav2vec 2.0 and its relatives.

    Where a mask keeps padding out (`MASKABLE` with layer norm in the front end), all windows run in one pass. Elsewhere
    (`UNMASKABLE`; group norm, whose statistics run over time) windows of equal length share a pass, without padding.
    """

    config: TransformersEncoderConfig

    def __init__(self, config: TransformersEncoderConfig) -> None:
        super().__init__(config)
        self.model = load_model(config)
        arch = config.architecture
        # A batch norm before the position convolution writes its offset into the padding.
        batch_norm = getattr(arch, "conv_pos_batch_norm", False)
        self.masked = arch.model_type in MASKABLE and arch.feat_extract_norm == "layer" and not batch_norm
        for name, parameter in self.named_parameters():
            # Never read by this use of the model: without a gradient they would stop a data-parallel run.
            if name.endswith("masked_spec_embed") or ("conformer" in arch.model_type and "pos_conv_embed" in name):
                parameter.requires_grad_(False)
        self._finish()

    def hidden_states(self, features: Tensor, samples_W: Sequence[int]) -> list[Tensor]:
        wav_WS = features.to(next(self.model.parameters()).dtype)
        lengths = [max(num_samples, self.config.min_samples) for num_samples in samples_W]
        if self.masked:
            wav_WS = wav_WS[:, : max(lengths)]
            mask_WS = length_mask(torch.tensor(lengths), wav_WS.shape[1], wav_WS.device)
            return all_states(self.model(wav_WS, attention_mask=mask_WS.long(), output_hidden_states=True))
        places: list[int] = []
        rows: list[list[Tensor]] = [[] for _ in range(self.config.num_hidden_layers + 1)]
        for length in sorted(set(lengths)):
            same = [place for place, other in enumerate(lengths) if other == length]
            states = all_states(self.model(wav_WS[same, :length], output_hidden_states=True))
            places += same
            for row, state_WTD in zip(rows, states, strict=True):
                row.extend(state_WTD.unbind())
        order = sorted(range(len(places)), key=places.__getitem__)
        return [torch.nn.utils.rnn.pad_sequence([row[i] for i in order], batch_first=True) for row in rows]


class AstEncoder(HubEncoder):
    """Audio Spectrogram Transformer.

    The model numbers its patches band by band (all time steps of the lowest band first). Frames here are in time order: all
    bands of time step 0, low to high, then those of step 1. Both special tokens are dropped, and the steps after the sound.
    """

    config: TransformersEncoderConfig

    def __init__(self, config: TransformersEncoderConfig) -> None:
        super().__init__(config)
        self.model = load_model(config)
        self._finish()

    def hidden_states(self, features: Tensor, samples_W: Sequence[int]) -> list[Tensor]:
        output = self.model(features.to(next(self.model.parameters()).dtype), output_hidden_states=True)
        bands, _ = self.config.ast_grid
        return [
            rearrange(state_WTD[:, AST_SPECIAL_TOKENS:], "w (band step) d -> w (step band) d", band=bands)
            for state_WTD in all_states(output)
        ]


def all_states(output: Any) -> list[Tensor]:
    """Hidden states of a transformers output, the last one after the final norm (not every family says so itself)."""
    return [*output.hidden_states[:-1], output.last_hidden_state]


def inline_architecture(fields: dict[str, Any]) -> "PreTrainedConfig":
    """A transformers config from its fields; a field the class does not know is an error."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    model_type, fields = fields.get("model_type"), {key: value for key, value in fields.items() if key != "model_type"}
    if model_type not in CONFIG_MAPPING:
        raise PalError(f"config: model_type {model_type!r} is unknown; supported are {', '.join(SUPPORTED)}")
    config_class = CONFIG_MAPPING[model_type]
    known = config_class().to_dict().keys() | config_class.attribute_map.keys()
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise PalError(f"config: {model_type} has no field {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        return config_class(**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise PalError(f"config: {model_type}: {_one_line(error)}") from None


def wrong_type(kind: str, model_type: str) -> PalError:
    """The error of an encoder type whose configuration or checkpoint is of another model."""
    mend = f"use type: {TYPE_OF[model_type]}" if model_type in TYPE_OF else "no type of encoder reads it"
    return PalError(f"a {kind} encoder cannot be made of model type {model_type!r}; {mend}")


def read_architecture(checkpoint: str) -> "PreTrainedConfig":
    """The config.json of a hub id or folder; code in it is never run."""
    from transformers import AutoConfig

    _refuse_missing_folder(checkpoint)
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise PalError(f"checkpoint {checkpoint!r}: its config cannot be read: {_one_line(error)}") from None
    assert not isinstance(config, tuple)
    return config


def read_preprocessor(checkpoint: str) -> dict[str, Any]:
    """The feature extractor's fields of a hub id or folder."""
    from transformers import FeatureExtractionMixin

    _refuse_missing_folder(checkpoint)
    try:
        return dict(FeatureExtractionMixin.get_feature_extractor_dict(checkpoint)[0])
    except (OSError, ValueError) as error:
        mend = "add it, or give preprocessor: in the config"
        raise PalError(f"checkpoint {checkpoint!r}: no preprocessor_config.json ({_one_line(error)}); {mend}") from None


def load_model(
    config: HubConfig, model_class: "type[PreTrainedModel] | None" = None, key_mapping: dict[str, str] | None = None
) -> torch.nn.Module:
    """The transformers model of a config, float32, with the checkpoint's weights or fresh ones.

    Dropped layers and transformers' own masking of training input are switched off: a dropped layer would be missing from
    `encoder_layers` and from a gradient's reduction over processes, and the masks are drawn outside torch's generator and
    fail on short clips.

    Args:
        config: of the encoder.
        model_class: to load; None: the base model of the config's type.
        key_mapping: renames weights of a checkpoint, pattern to replacement, as in `from_pretrained`.

    Raises:
        PalError: the checkpoint has no safetensors, or lacks weights of the encoder.
    """
    from transformers import AutoModel

    architecture = copy.deepcopy(config.architecture)
    architecture.update(dict.fromkeys(SWITCHED_OFF, 0.0) | {"apply_spec_augment": False})
    if config.checkpoint is None:
        return model_class(architecture) if model_class else AutoModel.from_config(architecture)
    loader: Any = model_class or AutoModel
    try:
        with _quiet():
            model, report = loader.from_pretrained(
                config.checkpoint,
                config=architecture,
                use_safetensors=True,
                dtype=torch.float32,
                key_mapping=key_mapping,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise PalError(f"checkpoint {config.checkpoint!r}: {_one_line(error)} (only safetensors are read)") from None
    # The vector that replaces masked input in pretraining is never used here, and many checkpoints lack it.
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("masked_spec_embed"))
    if missing:
        raise PalError(f"checkpoint {config.checkpoint!r} lacks {len(missing)} weights of the encoder, such as {missing[0]}")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No report on weights of heads and decoders, which are left out on purpose."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_missing_folder(checkpoint: str) -> None:
    """A path that does not exist is not worth asking the hub for."""
    looks_like_path = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1 or checkpoint.count("\\") > 0
    if looks_like_path and not Path(checkpoint).is_dir():
        raise PalError(f"checkpoint {checkpoint!r}: there is no such folder")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
