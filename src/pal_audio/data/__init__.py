"""Examples to learn from and to be tested on: manifests, composed scenes, public recordings.

`mix.build` makes the folder that a recipe's `data:` describes. Nothing here needs torch.
"""

from pal_audio.data.check import Problem, Report, check_manifest, inspect_manifest
from pal_audio.data.importers import IMPORTERS, Imported, Importer, import_set
from pal_audio.data.importers.recordings import import_recordings
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, read_manifest, write_manifest
from pal_audio.data.mix import DataConfig, Mix, build, chance, read_mix
from pal_audio.data.scenes import Scene, SceneSettings, scene

__all__ = [
    "IMPORTERS",
    "AudioPart",
    "DataConfig",
    "Example",
    "Imported",
    "Importer",
    "Message",
    "Mix",
    "Problem",
    "Report",
    "Scene",
    "SceneSettings",
    "TextPart",
    "build",
    "chance",
    "check_manifest",
    "import_recordings",
    "import_set",
    "inspect_manifest",
    "read_manifest",
    "read_mix",
    "scene",
    "write_manifest",
]
