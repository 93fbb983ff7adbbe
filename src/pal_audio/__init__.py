"""PAL: audio encoders joined to language models by PLITS, LAL and their hybrid.

The names below are loaded on first use, so that `import pal_audio` is instant and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pal_audio.audio import load_audio
    from pal_audio.integration.memory import AudioMemory
    from pal_audio.model import PalConfig, PalForConditionalGeneration, PalProcessor

__version__ = "0.1.0"

__all__ = ["AudioMemory", "PalConfig", "PalForConditionalGeneration", "PalProcessor", "__version__", "load_audio"]

_HOME_OF = {
    "AudioMemory": "pal_audio.integration.memory",
    "PalConfig": "pal_audio.model",
    "PalForConditionalGeneration": "pal_audio.model",
    "PalProcessor": "pal_audio.model",
    "load_audio": "pal_audio.audio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pal_audio' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
