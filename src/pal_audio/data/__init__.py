"""Examples to learn from and to be tested on: manifests, composed scenes, public recordings.

`prepare.prepare` gives the examples that a recipe's `data:` describes. Nothing here needs torch.
"""

from pal_audio.data.check import Problem, Report, check_manifest, inspect_manifest
from pal_audio.data.importers import IMPORTERS, Imported, Importer, import_set
from pal_audio.data.importers.recordings import import_recordings
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, read_manifest, write_manifest
from pal_audio.data.mix import DataConfig, Mix, build, chance, read_mix
from pal_audio.data.mixing import Composer, MixConfig, parse_caption, read_catalogue
from pal_audio.data.prepare import Prepared, prepare
from pal_audio.data.scenes import Scene, SceneSettings, scene
from pal_audio.data.shard_source import ShardSource
from pal_audio.data.shard_writing import write_shards
from pal_audio.data.shards import ShardStream
from pal_audio.data.sources import (
    ManifestConfig,
    ManifestsConfig,
    ShardsConfig,
    ShardsSourceConfig,
    SourceConfig,
    TextConfig,
    TextSourceConfig,
)
from pal_audio.data.texts import Document, read_documents

__all__ = [
    "IMPORTERS",
    "AudioPart",
    "Composer",
    "DataConfig",
    "Document",
    "Example",
    "Imported",
    "Importer",
    "ManifestConfig",
    "ManifestsConfig",
    "Message",
    "Mix",
    "MixConfig",
    "Prepared",
    "Problem",
    "Report",
    "Scene",
    "SceneSettings",
    "ShardSource",
    "ShardStream",
    "ShardsConfig",
    "ShardsSourceConfig",
    "SourceConfig",
    "TextConfig",
    "TextPart",
    "TextSourceConfig",
    "build",
    "chance",
    "check_manifest",
    "import_recordings",
    "import_set",
    "inspect_manifest",
    "parse_caption",
    "prepare",
    "read_catalogue",
    "read_documents",
    "read_manifest",
    "read_mix",
    "scene",
    "write_manifest",
    "write_shards",
]
