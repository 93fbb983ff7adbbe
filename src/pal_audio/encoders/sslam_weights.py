"""Weights of `sslam`: both naming schemes of the published files, a hub id, a folder or a file; safetensors alone.

The files of the model hub say `model.blocks.0...`, weights of the original training code
`modality_encoders.IMAGE...` and `blocks.0...`, with or without a leading `model.`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pal_audio.errors import PalError

HEAD = ("fc_norm.", "head.")
LEFT_OUT = ("_ema", "modality_encoders.IMAGE.decoder.")
"""The teacher and the decoder of pretraining: frames come from the student alone."""
MAX_CONFIG_BYTES = 2**20
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def our_name(published: str) -> str | None:
    """A published weight's name in `SslamModel`; None for what frames do not need."""
    name = re.sub(r"^model\.", "", published)
    if name.startswith(LEFT_OUT):
        return None
    return name.removeprefix("modality_encoders.IMAGE.").replace("context_encoder.norm.", "pre_norm.")


def read_weights(checkpoint: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint, float32, by the names of `SslamModel`.

    Args:
        checkpoint: hub id, folder with model.safetensors, or such a file.
        wanted: what the model has; shapes are compared before anything is read.

    Raises:
        PalError: the file cannot be read, or its names or shapes are not those of the model.
    """
    path = _weights_file(checkpoint)
    try:
        with safe_open(path, framework="pt") as file:
            places: dict[str, str] = {}
            for published in sorted(file.keys()):
                name = our_name(published)
                if name is None or (name.startswith(HEAD) and name not in wanted):
                    continue
                if name in places:
                    raise PalError(f"checkpoint {checkpoint!r}: {places[name]} and {published} are the same weight; keep one")
                places[name] = published
            for name in sorted(wanted.keys() | places.keys()):
                found = tuple(file.get_slice(places[name]).get_shape()) if name in places else "nothing"
                asked = tuple(wanted[name].shape) if name in wanted else "nothing"
                if found != asked:
                    raise PalError(f"checkpoint {checkpoint!r}: {name} is {found}, this config asks for {asked}")
            return {name: file.get_tensor(published).to(torch.float32) for name, published in places.items()}
    except (OSError, SafetensorError) as error:
        raise PalError(f"checkpoint {checkpoint!r}: {path.name} cannot be read: {_one_line(error)}") from None


def read_config(checkpoint: str, known: set[str]) -> dict[str, Any]:
    """Fields of the config.json that `write` made; none where a folder has none or that of the published models."""
    file = Path(checkpoint) / CONFIG
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise PalError(f"checkpoint {checkpoint!r}: {CONFIG} is over the limit of {MAX_CONFIG_BYTES} bytes")
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise PalError(f"checkpoint {checkpoint!r}: {CONFIG} cannot be read: {_one_line(error)}") from None
    if isinstance(fields, dict) and "type" not in fields and "model_type" in fields:
        return {}  # of the published remote code, which says none of our sizes by our names
    if not isinstance(fields, dict) or fields.get("type") != "sslam" or not fields.keys() <= known:
        raise PalError(f"checkpoint {checkpoint!r}: {CONFIG} is not of an sslam encoder")
    return fields


def write(folder: Path, fields: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """A folder that `read_config` and `read_weights` read, with the names of the model hub's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(dict(fields), indent=2) + "\n", encoding="utf-8")
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})


def _weights_file(checkpoint: str) -> Path:
    path = Path(checkpoint)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise PalError(f"checkpoint {checkpoint!r}: no {WEIGHTS} in this folder (only safetensors are read)")
        return path / WEIGHTS
    if path.is_file():
        if path.suffix != ".safetensors":
            raise PalError(f"checkpoint {checkpoint!r}: only .safetensors files are read")
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) or checkpoint.startswith(".") or path.suffix == ".safetensors":
        raise PalError(f"checkpoint {checkpoint!r}: there is no such file or folder, and a hub id has the form owner/name")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, WEIGHTS))
    except (OSError, ValueError) as error:
        raise PalError(f"checkpoint {checkpoint!r}: {WEIGHTS} cannot be had from the hub: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
