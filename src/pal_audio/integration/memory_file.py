"""An audio memory as one safetensors file: tensors, and a JSON header that says what they must be.

The header is one metadata entry, `pal_audio_memory`. Nothing in a file is trusted: names, shapes, dtypes, lengths, the
sizes and a checksum of header and tensors are compared before a tensor is used. Source: our choice.
"""

import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pal_audio.errors import PalError

ENTRY = "pal_audio_memory"
FORMAT = 2  # 1: its checksum did not cover the header
MAX_BYTES = 64 * 2**30


class Header(BaseModel):
    """What the file says of itself; lengths are whole numbers by type, so that none is infinite or missing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    fingerprint: str = Field(pattern=r"^[0-9a-f]{1,64}$")
    widths: list[int]
    layers: list[list[int]]
    num_slots: list[int]
    num_keys: list[list[int]]
    spans: list[int]
    samples: dict[str, list[int]]
    tensors: dict[str, tuple[str, list[int]]]
    """Name -> dtype, shape."""
    crc32: int

    def check(self, path: Path) -> None:
        """That lengths, widths and shapes agree with each other.

        Raises:
            PalError: they do not.
        """
        num_clips = len(self.spans)
        per_clip = [self.num_slots, *self.num_keys, *self.samples.values()]
        num_streams = len(self.layers)
        unequal = any(len(lengths) != num_clips for lengths in per_clip)
        if unequal or len(self.num_keys) != num_streams or len(self.widths) != num_streams:
            raise damaged(path, "its lengths are of different numbers of clips or streams")
        if any(not 0 <= length < 2**31 for lengths in [*per_clip, self.spans] for length in lengths):
            raise damaged(path, "a length is negative or too large")
        if any(max(lengths, default=0) > width for lengths, width in zip(self.num_keys, self.widths, strict=True)):
            raise damaged(path, "a clip is longer than its keys")
        names = {f"{side}.{s}.{layer}" for s, layers in enumerate(self.layers) for layer in layers for side in ("keys", "values")}
        if set(self.tensors) - {"slots"} != names:
            raise damaged(path, "its tensors are not those of its layers")
        for name, (_, shape) in self.tensors.items():
            if name == "slots":
                fits = len(shape) == 3 and shape[0] == num_clips and max(self.num_slots, default=0) <= shape[1]
            else:
                side, stream, layer = name.split(".")
                other = self.tensors[f"{'values' if side == 'keys' else 'keys'}.{stream}.{layer}"]
                fits = len(shape) == 4 and (shape[0], shape[2]) == (num_clips, self.widths[int(stream)])
                fits = fits and other == self.tensors[name]
            if not fits:
                raise damaged(path, f"{name} has shape {shape}")
        if max(self.num_slots, default=0) > 0 and "slots" not in self.tensors:
            raise damaged(path, "its PLITS tokens are missing")


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write under another name, sync, rename: the file is whole or not there.

    Raises:
        PalError: the folder is missing, or is no folder.
    """
    if not path.parent.is_dir():
        raise PalError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise PalError(f"{path}: is a folder; name a file")
    own = {name: _own(tensor) for name, tensor in tensors.items()}
    described = {name: (_dtype(tensor), list(tensor.shape)) for name, tensor in own.items()}
    whole = Header(format=FORMAT, tensors=described, crc32=0, **header)
    whole.crc32 = _checksum(whole, own)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        save_file(own, temporary, {ENTRY: whole.model_dump_json()})
        os.chmod(temporary, 0o666 & ~_umask())
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read(path: Path, max_bytes: int = MAX_BYTES) -> tuple[Header, dict[str, Tensor]]:
    """Read and check a file; tensors are on the CPU.

    Raises:
        PalError: it is missing, no audio memory, of another format, too large, or damaged.
    """
    if not path.is_file():
        raise PalError(f"{path}: no such file")
    size = path.stat().st_size
    if size > max_bytes:
        raise PalError(f"{path}: {size} bytes, over the limit of {max_bytes}; raise max_bytes if it is your own")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = _header(path, file.metadata())
            header.check(path)
            if set(file.keys()) != set(header.tensors):
                raise damaged(path, "its tensors are not those that its header names")
            for name, (_, shape) in header.tensors.items():  # before any of them is read
                if list(file.get_slice(name).get_shape()) != shape:
                    raise damaged(path, f"{name} has not the shape {shape}")
            tensors = {name: file.get_tensor(name) for name in header.tensors}
    except SafetensorError as error:
        raise damaged(path, f"it is no whole safetensors file ({error})") from error
    for name, (dtype, _) in header.tensors.items():
        if _dtype(tensors[name]) != dtype or not tensors[name].is_floating_point():
            raise damaged(path, f"{name} has dtype {_dtype(tensors[name])}")
    if _checksum(header, tensors) != header.crc32:
        raise damaged(path, "its checksum does not fit its header and tensors")
    return header, tensors


def damaged(path: Path, what: str) -> PalError:
    return PalError(f"{path}: not a usable audio memory: {what}; encode the audio again")


def _header(path: Path, metadata: dict[str, str] | None) -> Header:
    text = (metadata or {}).get(ENTRY)
    if text is None:
        raise PalError(f"{path}: a safetensors file but no audio memory; `AudioMemory.save` writes one")
    try:
        found = json.loads(text)
        version = found.get("format") if isinstance(found, dict) else None
        if version != FORMAT:
            raise PalError(f"{path}: audio memory of format {version!r}, this version reads {FORMAT}; encode the audio again")
        return Header.model_validate_json(text)
    except (json.JSONDecodeError, ValidationError, RecursionError) as error:
        raise damaged(path, f"its header is not understood ({type(error).__name__})") from error


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, on the CPU, alone in its storage (safetensors refuses what shares)."""
    tensor = tensor.detach().cpu().contiguous()
    shares = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if shares else tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _checksum(header: Header, tensors: dict[str, Tensor]) -> int:
    checksum = zlib.crc32(header.model_dump_json(exclude={"crc32"}).encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data, checksum)
    return checksum


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
