"""Examples to learn from and to be tested on: manifests, composed scenes, public recordings.

`prepare.prepare` gives the examples that a recipe's `data:` describes. Nothing here needs torch.
"""

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, check_manifest, read_manifest, write_manifest
from pal_audio.data.mix import DataConfig, Mix, build, chance, read_mix
from pal_audio.data.prepare import Prepared, prepare
from pal_audio.data.recordings import import_recordings
from pal_audio.data.scenes import Scene, SceneSettings, scene
from pal_audio.data.sources import ManifestsConfig, SourceConfig

__all__ = [
    "AudioPart",
    "DataConfig",
    "Example",
    "ManifestsConfig",
    "Message",
    "Mix",
    "Prepared",
    "Scene",
    "SceneSettings",
    "SourceConfig",
    "TextPart",
    "build",
    "chance",
    "check_manifest",
    "import_recordings",
    "prepare",
    "read_manifest",
    "read_mix",
    "scene",
    "write_manifest",
]
