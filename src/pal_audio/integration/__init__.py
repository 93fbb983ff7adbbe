"""How audio enters a language model: PLITS, LAL, Flamingo-style blocks, and what they share.

Read in this order: `config` (the options), `key_values` (a decoder layer's own way to keys and values), `proof` (the check
that we found it), `projectors` (P_l), `positions` (where a clip stands), `memory` (audio as a value), `attention`
(where text meets audio), `flamingo` (blocks before layers).
"""

from pal_audio.integration.config import FlamingoConfig, IntegrationConfig, LalConfig, PlitsConfig, parse_layers
from pal_audio.integration.memory import AudioMemory

__all__ = ["AudioMemory", "FlamingoConfig", "IntegrationConfig", "LalConfig", "PlitsConfig", "parse_layers"]
