"""`pal encode`: frozen encoders once over every clip of some manifests, into a frame cache (see `frame_cache`).

A shard is written whole (temporary name, sync, rename) and never changed, so a killed run loses at most the shard that is being
written and the one that is being filled; the same command goes on with the clips that no shard holds.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from pal_audio.audio import load_audio
from pal_audio.data.encoder_identity import EncoderIdentity, check_frozen
from pal_audio.data.file_hashes import FileHashes
from pal_audio.data.folder import LOCK, locked, write_bytes
from pal_audio.data.frame_cache import (
    DTYPES,
    FILES,
    MAX_SHARD_BYTES,
    CacheIndex,
    DtypeName,
    Entry,
    FrameCache,
    checksum,
    entry_key,
    read_entries,
    read_index,
    shards,
)
from pal_audio.data.manifest import AudioPart, write_text
from pal_audio.data.workers import in_workers
from pal_audio.encoders.base import AudioEncoder, Frames, FrontEnd
from pal_audio.errors import PalError

SHARD_BYTES = 2**28
SHARD_ENTRIES = 20_000  # bounds the header, which safetensors limits
BATCH_CLIPS = 8
MAX_WINDOWS = 16
ACCELERATOR_CLIPS = 64  # and windows, in one pass

Encoders = Mapping[str, AudioEncoder] | nn.ModuleDict
Progress = Callable[[int, int], None]


def encode(
    parts: Iterable[AudioPart],
    encoders: Encoders,
    out: Path,
    dtype: DtypeName = "float32",
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
    num_workers: int = 0,
) -> int:
    """Store the frames of clips; those that are there are kept.

    Args:
        parts: clips with absolute paths; repetitions count once.
        encoders: frozen ones, by name, at least one, float32, on the device that is to compute.
        out: a new folder, or a cache of the same dtype.
        dtype: that frames are stored in; they are computed in float32.
        progress: called with entries done and entries in all.
        shard_bytes: a shard is closed when its frames reach this size; some three times that is held in memory.
        num_workers: processes that read sound and make features while this one encodes; they change no number.

    Returns:
        The number of new entries.

    Raises:
        PalError: an encoder is not frozen; `out` is something else, is being written, or the disk is full; a clip cannot be read.
    """
    check_frozen({name: encoder.config for name, encoder in encoders.items()})
    if out.exists() and not out.is_dir():
        raise PalError(f"{out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        identities = {name: EncoderIdentity.of(encoder) for name, encoder in encoders.items()}
        _enter(out, identities, dtype)
        held = {key for shard in shards(out) for key in read_entries(shard)}
        device = _device_of(next(iter(encoders.values())))
        clips = _distinct(parts)
        known = FileHashes(out / FILES)
        try:
            hashes = known.of_all(part.path for part in clips)
        finally:
            known.save()
        ids = {name: identity.id for name, identity in identities.items()}
        chunks = _chunks(clips, hashes, ids, held, dtype, BATCH_CLIPS if device.type == "cpu" else ACCELERATOR_CLIPS)
        total = sum(len(chunk.keys) * len(chunk.parts) for chunk in chunks)
        done = 0
        tasks = [(list(chunk.keys), chunk.parts) for chunk in chunks]
        with (
            closing(_ShardWriter(out, shard_bytes)) as writer,
            closing(in_workers(Read.of(encoders), tasks, num_workers)) as heard,
        ):
            for chunk, groups in zip(chunks, heard, strict=True):
                for names, features, num_samples in groups:
                    features = features.to(device)
                    for name in names:
                        frames = compute(encoders[name], features, num_samples, dtype)
                        if not (fits_C := _are_finite(frames)).all():
                            clip = chunk.parts[fits_C.tolist().index(False)]
                            raise PalError(f"{clip.path}: its frames do not fit {dtype}; use --dtype float32 or bfloat16")
                        frames = frames.to("cpu")
                        for row, key in enumerate(chunk.keys[name]):
                            length = int(frames.lengths[row])
                            writer.add(key, [layer[row, :length].clone() for layer in frames.layers], num_samples[row])
                        done += len(chunk.parts)
                        if progress is not None:
                            progress(done, total)
            writer.finish()
    return total


@dataclass(frozen=True)
class _Chunk:
    """Clips that are read together, and by encoder that lacks their frames the keys of these."""

    parts: list[AudioPart]
    keys: dict[str, list[str]]


def _chunks(
    clips: Sequence[AudioPart],
    hashes: Mapping[str, str],
    ids: Mapping[str, str],
    held: Set[str],
    dtype: DtypeName,
    size: int,
) -> list[_Chunk]:
    """What is to do, each clip once whatever number of encoders lacks it; clips of a chunk are lacked by the same ones."""
    by_lacking: dict[tuple[str, ...], dict[tuple[str, ...], AudioPart]] = {}
    for part in clips:
        keyed = {name: entry_key(hashes[part.path], part, encoder_id, dtype) for name, encoder_id in ids.items()}
        lacking = {name: key for name, key in keyed.items() if key not in held}
        by_lacking.setdefault(tuple(lacking), {})[tuple(lacking.values())] = part  # another file of the same content counts once
    chunks = []
    for names, keyed_parts in by_lacking.items():
        items = list(keyed_parts.items()) if names else []
        for some in (items[start : start + size] for start in range(0, len(items), size)):
            keys = {name: [keys[number] for keys, _ in some] for number, name in enumerate(names)}
            chunks.append(_Chunk([part for _, part in some], keys))
    return chunks


@dataclass(frozen=True)
class Read:
    """Clips to what encoders take of them, in whatever process; a clip is read once for all encoders of a rate.

    Attributes:
        front_ends: by encoder, with its rate.
    """

    front_ends: dict[str, tuple[FrontEnd, int]]

    @classmethod
    def of(cls, encoders: Encoders) -> "Read":
        configs = {name: (encoder.config, _device_of(encoder)) for name, encoder in encoders.items()}
        return cls({name: (config.front_end_for(device), config.sampling_rate_hz) for name, (config, device) in configs.items()})

    def __call__(self, task: tuple[Sequence[str], Sequence[AudioPart]]) -> list[tuple[list[str], Tensor, list[int]]]:
        """Of the encoders and clips of a task: encoders that take the same, features (W, ...) and samples of each clip."""
        names, parts = task
        takers: dict[tuple[FrontEnd, int], list[str]] = {}
        for name in names:
            takers.setdefault(self.front_ends[name], []).append(name)
        rates = {rate_hz for _, rate_hz in takers}
        waves = {hz: [load_audio(part.path, hz, start_s=part.start_s, end_s=part.end_s) for part in parts] for hz in rates}
        groups = []
        for (front_end, rate_hz), members in takers.items():
            windows = [window for wav_S in waves[rate_hz] for window in front_end(wav_S)]
            features = nn.utils.rnn.pad_sequence(windows, batch_first=True)
            groups.append((members, features, [len(wav_S) for wav_S in waves[rate_hz]]))
        return groups


@torch.no_grad()
def compute(encoder: AudioEncoder, features: Tensor, num_samples: Sequence[int], dtype: DtypeName = "float32") -> Frames:
    """Frames of clips that were read, on the encoder's device, computed in float32 and given in `dtype`."""
    device = _device_of(encoder)
    max_windows = MAX_WINDOWS if device.type == "cpu" else ACCELERATOR_CLIPS
    frames = encoder(features.to(device), torch.tensor(num_samples), max_windows)
    return Frames([layer.to(DTYPES[dtype]) for layer in frames.layers], frames.lengths)


def verify(parts: Iterable[AudioPart], encoders: Encoders, out: Path, num: int) -> tuple[int, float]:
    """Encode `num` randomly chosen clips again, one by one.

    Returns:
        How many were compared, and the largest absolute difference between a stored value and a live one.

    Raises:
        PalError: an entry is missing or damaged.
    """
    cache = FrameCache(out, encoders)
    clips = _distinct(parts)
    chosen = np.random.default_rng().permutation(len(clips))[:num]
    largest = 0.0
    reader = Read.of(encoders)
    for number in chosen:
        stored = cache.read(clips[int(number)])
        for names, features, num_samples in reader((list(encoders), [clips[int(number)]])):
            for name in names:
                live = compute(encoders[name], features, num_samples).to("cpu")
                for ours, theirs in zip(stored[name].layers, live.layers, strict=True):
                    largest = max(largest, float((ours.float() - theirs.float()).abs().max()))
    return len(chosen), largest


class _ShardWriter:
    """Collects entries; a full shard is written by a thread while the next one is filled, one at a time."""

    def __init__(self, out: Path, shard_bytes: int) -> None:
        self.out, self.shard_bytes = out, shard_bytes
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.entries: dict[str, Entry] = {}
        self.num_bytes = 0

    def add(self, key: str, layers: list[Tensor], num_samples: int) -> None:
        self.tensors |= {f"{key}.{number}": layer_TD for number, layer_TD in enumerate(layers)}
        self.entries[key] = Entry(num_samples=num_samples, checksums=[checksum(layer_TD) for layer_TD in layers])
        self.num_bytes += sum(layer_TD.nbytes for layer_TD in layers)
        if self._written is not None and self._written.done():
            self._wait()  # what kept it from being written ends the run now
        if self.num_bytes >= self.shard_bytes or len(self.entries) >= SHARD_ENTRIES:
            self._begin()

    def finish(self) -> None:
        """Write what is left and wait for it."""
        if self.entries:
            self._begin()
        self._wait()

    def close(self) -> None:
        """End the thread, behind the shard that it writes; what is not yet full is dropped."""
        self._thread.shutdown()

    def _begin(self) -> None:
        self._wait()
        self._written = self._thread.submit(self._write, self.tensors, self.entries, self.num_bytes)
        self._clear()

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _write(self, tensors: dict[str, Tensor], entries: dict[str, Entry], num_bytes: int) -> None:
        content = save(tensors, {"entries": json.dumps({key: entry.model_dump() for key, entry in entries.items()})})
        if len(content) > MAX_SHARD_BYTES:
            size = f"one clip's frames take {num_bytes} bytes"
            raise PalError(f"{size}, over the limit of a shard; cut the clip, or --dtype bfloat16")
        written = shards(self.out)
        number = int(written[-1].stem) + 1 if written else 0
        try:
            write_bytes(self.out / f"{number:06d}.safetensors", content)
        except OSError as error:
            why = f"{error.strerror}, {shutil.disk_usage(self.out).free} bytes are free"
            raise PalError(f"{self.out}: a shard cannot be written ({why}); those before it are whole, run it again") from error


def _enter(out: Path, identities: dict[str, EncoderIdentity], dtype: DtypeName) -> None:
    """Note the encoders in `cache.json`, and drop what a kill left behind."""
    foreign = [item.name for item in out.iterdir() if item.name not in (LOCK, "cache.json") and not item.name.endswith(".tmp")]
    if foreign and not (out / "cache.json").is_file():
        raise PalError(f"{out} holds something that is no frame cache; choose another folder")
    index = read_index(out) if (out / "cache.json").is_file() else CacheIndex(dtype=dtype)
    if index.dtype != dtype:
        raise PalError(f"{out} holds {index.dtype} frames; ask for --dtype {index.dtype}, or choose another folder")
    for leftover in (*out.glob(".*.safetensors.tmp"), *out.glob(".*.json.tmp")):
        leftover.unlink()
    index.encoders += [identity for identity in identities.values() if identity not in index.encoders]
    write_text(out / "cache.json", index.model_dump_json(indent=2) + "\n")


def _device_of(encoder: AudioEncoder) -> torch.device:
    return next(encoder.parameters()).device


def _are_finite(frames: Frames) -> Tensor:
    """Of each clip (C,), whether all its values are numbers; the padding is zero."""
    return torch.stack([torch.isfinite(layer_CTD).flatten(1).all(1) for layer_CTD in frames.layers]).all(0)


def _distinct(parts: Iterable[AudioPart]) -> list[AudioPart]:
    return list({(part.path, part.start_s or 0.0, part.end_s): part for part in parts}.values())
