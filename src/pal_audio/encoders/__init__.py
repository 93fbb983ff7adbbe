"""Audio encoders: waveform -> frames. A new member is one file here and one line in the union."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from pal_audio.config import parse_config
from pal_audio.encoders.base import AudioEncoder, EncoderConfig, Frames, FrontEnd
from pal_audio.encoders.clap import ClapEncoderConfig
from pal_audio.encoders.conv import ConvEncoderConfig
from pal_audio.encoders.sslam import SslamEncoderConfig
from pal_audio.encoders.transformers_ import TransformersEncoderConfig
from pal_audio.encoders.whisper import WhisperEncoderConfig

EncoderConfigUnion = Annotated[
    ConvEncoderConfig  #
    | WhisperEncoderConfig
    | SslamEncoderConfig
    | ClapEncoderConfig
    | TransformersEncoderConfig,
    Field(discriminator="type"),
]
_adapter: TypeAdapter[EncoderConfig] = TypeAdapter(EncoderConfigUnion)


def parse(values: object) -> EncoderConfig:
    """A checked configuration from a dict such as `{"type": "conv"}`.

    Raises:
        PalError: what is wrong and where, in one line.
    """
    return parse_config(_adapter, values, "encoder")


def build(config: EncoderConfig) -> AudioEncoder:
    """The encoder of a configuration, with the checkpoint's weights where it names one."""
    return config.build()


__all__ = ["AudioEncoder", "EncoderConfig", "EncoderConfigUnion", "Frames", "FrontEnd", "build", "parse"]
