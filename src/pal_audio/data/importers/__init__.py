"""Public sets, and tables of one's own, to manifests: one file a set, one line in the registry."""

from __future__ import annotations

import os
from collections.abc import Callable

from pal_audio.data.importers import writing
from pal_audio.data.importers.audiocaps import AUDIOCAPS
from pal_audio.data.importers.base import Importer, Item
from pal_audio.data.importers.clotho import CLOTHO
from pal_audio.data.importers.esc import ESC10, ESC50
from pal_audio.data.importers.fsd50k import FSD50K
from pal_audio.data.importers.fsdd import FSDD
from pal_audio.data.importers.librispeech import LIBRISPEECH
from pal_audio.data.importers.mmar import MMAR
from pal_audio.data.importers.mmau import MMAU
from pal_audio.data.importers.openaqa import OPENAQA
from pal_audio.data.importers.plain_csv import CSV
from pal_audio.data.importers.sharegpt import SHAREGPT
from pal_audio.data.importers.vggsound import VGGSOUND
from pal_audio.data.importers.writing import Imported

_ALL = (
    *(ESC10, ESC50, FSDD, LIBRISPEECH, AUDIOCAPS, CLOTHO, OPENAQA),
    *(MMAU, MMAR, FSD50K, VGGSOUND, SHAREGPT, CSV),
)
IMPORTERS: dict[str, Importer] = {importer.name: importer for importer in _ALL}


def import_set(
    name: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Imported:
    """Write the manifests of a set of the registry; see `writing.import_set`."""
    return writing.import_set(IMPORTERS, name, root, out, overwrite, progress)


__all__ = ["IMPORTERS", "Imported", "Importer", "Item", "import_set"]
