"""Examples to learn from and to be tested on: manifests, composed scenes, public recordings.

`mix.build` makes the folder that a recipe's `data:` describes. Nothing here needs torch.
"""

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, check_manifest, read_manifest, write_manifest
from pal_audio.data.mix import DataConfig, Mix, build, chance, read_mix
from pal_audio.data.recordings import import_recordings
from pal_audio.data.scenes import Scene, SceneSettings, scene

__all__ = [
    "AudioPart",
    "DataConfig",
    "Example",
    "Message",
    "Mix",
    "Scene",
    "SceneSettings",
    "TextPart",
    "build",
    "chance",
    "check_manifest",
    "import_recordings",
    "read_manifest",
    "read_mix",
    "scene",
    "write_manifest",
]
