"""Connectors: frames -> audio tokens. A new member is one file here and one line in the union."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from pal_audio.config import parse_config
from pal_audio.connectors.base import AnyConnectorConfig, Connector, ConnectorConfig, TokenHead, time_code
from pal_audio.connectors.joint import JointConnector, JointConnectorConfig
from pal_audio.connectors.lfst import LfstConnectorConfig
from pal_audio.connectors.mlp import MlpConnectorConfig
from pal_audio.connectors.pool import PoolConnectorConfig
from pal_audio.connectors.qformer import QformerConnectorConfig

ConnectorConfigUnion = Annotated[
    MlpConnectorConfig  #
    | PoolConnectorConfig
    | QformerConnectorConfig
    | LfstConnectorConfig,
    Field(discriminator="type"),
]
_adapter: TypeAdapter[AnyConnectorConfig] = TypeAdapter(ConnectorConfigUnion)


def parse(values: object) -> AnyConnectorConfig:
    """A checked configuration from a dict such as `{"type": "mlp", "stride": 2}`.

    Raises:
        PalError: what is wrong and where, in one line.
    """
    return parse_config(_adapter, values, "connector")


def build(config: ConnectorConfig, frame_size: int, token_size: int, frame_rate_hz: float, init_rms: float = 1.0) -> Connector:
    """The connector of a configuration, freshly initialised; the sizes are those of `Connector`."""
    return config.build(frame_size, token_size, frame_rate_hz, init_rms)


__all__ = [
    "AnyConnectorConfig",
    "Connector",
    "ConnectorConfig",
    "ConnectorConfigUnion",
    "JointConnector",
    "JointConnectorConfig",
    "TokenHead",
    "build",
    "parse",
    "time_code",
]
