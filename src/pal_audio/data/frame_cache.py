"""Frames of frozen encoders on disk: what `pal encode` writes and training reads instead of sound.

    OUT/files.json            hashes of the sound files (see `file_hashes`); it may be missing
    OUT/cache.json            dtype, and of each encoder that wrote here its identity, configuration and weights' hash
    OUT/000000.safetensors    frames (T, D) by `KEY.LAYER`; in the header's metadata, of each key, its samples and checksums

KEY is a SHA-256 of the sound file's bytes, the stretch of it, the encoder's identity and the dtype, so an entry holds wherever
the file lies and is never found by another encoder. An encoder's identity is its resolved configuration (what its front end
is made of included) and every bit of its weights. A checksum is looked at when a process first reads an entry. Source:
our choice.

Shapes: T encoder frames, D width.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pal_audio.config import StrictConfig, one_line
from pal_audio.data.encoder_identity import EncoderIdentity, check_frozen
from pal_audio.data.file_hashes import FileHashes
from pal_audio.data.manifest import AudioPart
from pal_audio.encoders.base import AudioEncoder, EncoderConfig, Frames
from pal_audio.errors import PalError
from pal_audio.many_objects import many_objects

FORMAT = 1  # to be raised whenever the same sound and encoder would give other frames or another layout
MAX_SHARD_BYTES = 2**32
MAX_INDEX_BYTES = 2**24
OPEN_SHARDS = 64
KEPT_VIEWS = 2**18  # about 1 kB each
FILES = "files.json"

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CacheIndex(StrictConfig):
    """What `cache.json` holds."""

    format: int = FORMAT
    dtype: DtypeName
    encoders: list[EncoderIdentity] = Field(default_factory=list, max_length=64)


class Entry(StrictConfig):
    """A clip's frames in a shard: samples at the encoder's rate, and the CRC-32 of each layer's bytes."""

    num_samples: int = Field(ge=0)
    checksums: list[int] = Field(min_length=1, max_length=1024)


def check_cache(folder: Path, encoders: Mapping[str, EncoderConfig]) -> None:
    """What can be said of a recipe's `frame_cache` before a model is built.

    Raises:
        PalError: an encoder may change, or the folder holds no cache.
    """
    check_frozen(encoders)
    read_index(folder)


def read_index(folder: Path) -> CacheIndex:
    """The `cache.json` of a folder.

    Raises:
        PalError: there is none, or it is damaged or of another format.
    """
    file = folder / "cache.json"
    try:
        if file.stat().st_size > MAX_INDEX_BYTES:
            raise PalError(f"{file}: over the limit of {MAX_INDEX_BYTES} bytes; this is no frame cache")
        index = CacheIndex.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        why = f"{error.strerror}: cache.json"
        raise PalError(f"frame_cache {folder}: no frame cache here ({why}); make it by `pal encode`") from error
    except ValidationError as error:
        raise PalError(f"{file}: damaged ({one_line(error)}); delete the folder and run `pal encode` again") from error
    except PalError:
        raise
    except (ValueError, RecursionError) as error:
        raise PalError(f"{file}: damaged, it is not JSON; delete the folder and run `pal encode` again") from error
    if index.format != FORMAT:
        raise PalError(f"{file}: format {index.format}, this version reads {FORMAT}; make the cache again by `pal encode`")
    return index


def shards(folder: Path) -> list[Path]:
    """Whole shards, in the order in which they were written."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def read_entries(shard: Path) -> dict[str, Entry]:
    """Entries of a shard by key, without reading frames.

    Raises:
        PalError: the shard is cut, damaged or too big.
    """
    try:
        if shard.stat().st_size > MAX_SHARD_BYTES:
            raise PalError(f"{shard}: over the limit of {MAX_SHARD_BYTES} bytes")
        with safe_open(shard, framework="pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
        entries = {key: Entry.model_validate(value) for key, value in json.loads(metadata["entries"]).items()}
    except PalError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(shard) from error
    if names != {f"{key}.{number}" for key, entry in entries.items() for number in range(len(entry.checksums))}:
        raise damaged(shard)
    return entries


def damaged(shard: Path) -> PalError:
    """The error of a shard whose bytes are not what was written."""
    return PalError(f"{shard}: this shard is damaged; delete it and run `pal encode` again, which makes its entries anew")


def entry_key(audio_hash: str, part: AudioPart, encoder_id: str, dtype: str) -> str:
    """Key of a clip's frames; see the module."""
    return hashlib.sha256(json.dumps([audio_hash, part.start_s or 0.0, part.end_s, encoder_id, dtype]).encode()).hexdigest()


def checksum(frames_TD: Tensor) -> int:
    """CRC-32 of a contiguous CPU tensor's bytes."""
    return zlib.crc32(frames_TD.view(torch.uint8).numpy().data)


class FrameCache:
    """The frames of some encoders, by clip.

    Args:
        folder: of `pal encode`.
        encoders: by name; identities are taken from their weights as they are now.

    Attributes:
        ids: identity of each encoder, by name.
        dtype: of the frames.

    Raises:
        PalError: an encoder may change in training, its frames are not here, or a shard is damaged.
    """

    def __init__(self, folder: Path, encoders: Mapping[str, AudioEncoder] | nn.ModuleDict) -> None:
        self.folder = folder
        self._configs: dict[str, EncoderConfig] = {name: encoder.config for name, encoder in encoders.items()}
        check_frozen(self._configs)
        index = read_index(folder)
        self.dtype = index.dtype
        self.ids = {name: _known(folder, index, name, EncoderIdentity.of(encoder)) for name, encoder in encoders.items()}
        self._hashes = FileHashes(folder / FILES)
        self._look()

    def _look(self) -> None:
        self._views: dict[str, Frames] = {}
        self._found: dict[tuple[str, float | None, float | None], dict[str, tuple[str, Path, Entry]]] = {}
        with many_objects():
            self._entries = {key: (shard, entry) for shard in shards(self.folder) for key, entry in read_entries(shard).items()}
        self._open = lru_cache(maxsize=OPEN_SHARDS)(lambda shard: safe_open(shard, framework="pt"))

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the shards itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_entries", "_open", "_views", "_found")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._look()

    def num_samples(self, part: AudioPart) -> dict[str, int]:
        """Samples of a clip at each encoder's rate.

        Raises:
            PalError: the cache lacks the clip.
        """
        return {name: entry.num_samples for name, (_, _, entry) in self._entries_of(part).items()}

    def read(self, part: AudioPart) -> dict[str, Frames]:
        """Frames of one clip, by encoder.

        Raises:
            PalError: the cache lacks the clip, or its shard is damaged.
        """
        return {name: self._read(name, *found) for name, found in self._entries_of(part).items()}

    def _entries_of(self, part: AudioPart) -> dict[str, tuple[str, Path, Entry]]:
        """Key, shard and entry of a clip, by encoder."""
        place = (part.path, part.start_s, part.end_s)
        if part.content is not None:
            return {name: self._entry(name, part) for name in self.ids}
        if place not in self._found:
            self._found[place] = {name: self._entry(name, part) for name in self.ids}
        return self._found[place]

    def _entry(self, name: str, part: AudioPart) -> tuple[str, Path, Entry]:
        key = entry_key(self._hash(part), part, self.ids[name], self.dtype)
        if key not in self._entries:
            end = "its end" if part.end_s is None else f"{part.end_s:g} s"
            raise PalError(
                f"frame_cache {self.folder}: no frames of {part.path} from {part.start_s or 0:g} s to {end} by encoder {name!r}: "
                "it is new or has changed; run `pal encode` over its manifest"
            )
        return key, *self._entries[key]

    def _hash(self, part: AudioPart) -> str:
        if part.content is not None:
            return hashlib.sha256(part.content).hexdigest()
        return self._hashes.of(part.path)

    def _read(self, name: str, key: str, shard: Path, entry: Entry) -> Frames:
        """A view of the mapped file: what is kept of it is its place, not its bytes."""
        if key in self._views:
            return self._views[key]
        try:
            layers = [self._open(shard).get_tensor(f"{key}.{number}") for number in range(len(entry.checksums))]
        except (OSError, SafetensorError) as error:
            raise damaged(shard) from error
        config = self._configs[name]
        shape = (config.output_lengths(entry.num_samples), config.frame_size)
        for layer_TD, expected in zip(layers, entry.checksums, strict=True):
            if tuple(layer_TD.shape) != shape or layer_TD.dtype != DTYPES[self.dtype] or checksum(layer_TD) != expected:
                raise damaged(shard)
        frames = Frames([layer_TD[None] for layer_TD in layers], torch.tensor([shape[0]]))
        if len(self._views) < KEPT_VIEWS:
            self._views[key] = frames
        return frames


def _known(folder: Path, index: CacheIndex, name: str, identity: EncoderIdentity) -> str:
    """The identity's id, if this encoder has written to the cache."""
    if identity in index.encoders:
        return identity.id
    alike = [other for other in index.encoders if (other.config, other.front_end) == (identity.config, identity.front_end)]
    what = "weights" if alike else "configuration"
    raise PalError(f"frame_cache {folder}: made by an encoder of another {what} than {name!r}; run `pal encode` with this one")
