"""Folders of trained parts (`save: trained`): what training changed or made, and which bases the rest comes from.

    config.json         as ever, and `bases`: of the LLM and of each encoder with a checkpoint its name, revision and SHA-256
    model.safetensors   every tensor that is not one of a base, or that a stage has trained; buffers too

A base's hash is over the tensors that the folder leaves out, as they are in the model, so it does not depend on how they are
cut into files. Source: our choice.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils.hub import cached_file

from pal_audio.config import StrictConfig, parse_config
from pal_audio.errors import PalError
from pal_audio.model.adapters import is_adapter_parameter
from pal_audio.model.configuration import AudioConfig, PalConfig
from pal_audio.model.pretrained import llm_weights

_WEIGHTS = "model.safetensors"
_HUB = {"revision", "token", "cache_dir", "local_files_only", "force_download"}
_TOLD_BY_OTHERS = {"use_safetensors", "trust_remote_code", "_from_auto", "_commit_hash", "code_revision", "adapter_kwargs"}


class Base(StrictConfig):
    """Where the weights of a part come from.

    Attributes:
        name: hub id, or absolute path of a folder.
        revision: of the hub: the commit, where it is known.
        sha256: of the tensors that are left out.
        config: of an encoder, as the recipe says it.
    """

    name: str
    revision: str | None = None
    sha256: str = ""
    config: dict[str, Any] | None = None


class Bases(StrictConfig):
    """`bases` of a configuration."""

    llm: Base | None = None
    encoders: dict[str, Base] = Field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Base]:
        """By the prefix of their tensors' names."""
        llm = {} if self.llm is None else {"language_model.": self.llm}
        return llm | {f"encoders.{name}.": base for name, base in self.encoders.items()}


_adapter: TypeAdapter[Bases] = TypeAdapter(Bases)


def bases_of(llm: str | dict[str, Any] | None, revision: str | None, audio: AudioConfig) -> Bases:
    """The bases of a model that is built from these; hashes are still to come."""
    found = {
        name: Base(name=_located(config.checkpoint), config=config.model_dump(mode="json", exclude_unset=True))
        for name, config in audio.encoders.items()
        if config.checkpoint is not None
    }
    return Bases(llm=Base(name=_located(llm), revision=revision) if isinstance(llm, str) else None, encoders=found)


def write_trained(model: Any, bases: Bases, trained: Iterable[nn.Parameter], folder: Path) -> None:
    """Write config.json, generation_config.json and the tensors that the bases do not give.

    Args:
        model: a PAL model.
        bases: see `bases_of`.
        trained: parameters that training may have changed.
        folder: exists.
    """
    kept = {id(parameter) for parameter in trained}
    stored = _without_repeats(
        (name, tensor) for name, tensor in _tensors(model).items() if id(tensor) in kept or _base_of(name, tensor, bases) is None
    )
    hashed = {prefix: base.model_copy(update={"sha256": _digest(model, prefix, stored)}) for prefix, base in bases.parts.items()}
    if bases.llm is not None and bases.llm.revision is None:
        commit = getattr(model.language_model.config, "_commit_hash", None)
        hashed["language_model."] = hashed["language_model."].model_copy(update={"revision": commit})
    encoders = {name: hashed[f"encoders.{name}."] for name in bases.encoders}
    model.config.bases = Bases(llm=hashed.get("language_model."), encoders=encoders).model_dump(mode="json")
    try:
        model.config.save_pretrained(folder)
    finally:
        model.config.bases = None
    model.generation_config.save_pretrained(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def read_trained(model_class: Any, path: str, config: PalConfig, **options: Any) -> Any:
    """Build a model from its bases and a folder of trained parts.

    Args:
        model_class: `PalForConditionalGeneration`.
        path: folder or hub id.
        config: that of the folder, with `bases`.
        **options: of `from_pretrained`: `dtype`, and how a file is fetched; what changes nothing is let through.

    Raises:
        PalError: a base cannot be had or is not what was trained on, the tensors do not fit, or an option is unknown here.
    """
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    unknown = sorted(name for name in set(options) - _TOLD_BY_OTHERS - _HUB if options[name] is not None)
    if unknown:
        raise PalError(f"{path} holds trained parts only, for which {unknown[0]!r} cannot be used; make it whole by `pal export`")
    bases = parse_config(_adapter, config.bases, f"{path}: bases")
    build = PalConfig.from_dict(config.to_dict() | {"bases": None, "audio_config": _with_checkpoints(config, bases)})
    try:
        in_four_bit = build.adapter_config is not None and build.adapter_config.type == "qlora"
        llm = None if bases.llm is None else llm_weights(bases.llm.name, bases.llm.revision, in_four_bit)
        model = model_class(build, llm)
    except PalError as error:
        raise PalError(f"{path} needs its bases (`bases` in config.json says where they lie): {error}") from error
    model.config.audio_config = config.audio_config
    stored = _read(path, hub_options(options))
    if unexpected := sorted(set(stored) - set(_tensors(model))):
        raise PalError(f"{path}: {len(unexpected)} tensors are of no part of this model, the first is {unexpected[0]!r}")
    for prefix, base in bases.parts.items():
        if _digest(model, prefix, stored) != base.sha256:
            raise PalError(
                f"{path}: the base {base.name!r} is not the one that it was trained on (its SHA-256 differs); put that one "
                "in its place, or name where it lies under `bases` in config.json"
            )
    _fill(model, stored, bases, path)
    model.generation_config = GenerationConfig.from_pretrained(path, **hub_options(options))
    if dtype not in (None, "auto"):
        model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    return model.eval()


def _fill(model: Any, stored: dict[str, Tensor], bases: Bases, path: str) -> None:
    """Put stored tensors in place; everything else must be a base's."""
    tensors = _tensors(model)
    covered = {id(tensors[name]) for name in stored}
    missing = [name for name, t in tensors.items() if id(t) not in covered and _base_of(name, t, bases) is None]
    if missing:
        raise PalError(f"{path} lacks {len(missing)} weights of this model, the first is {missing[0]!r}")
    with torch.no_grad():
        for name, value in stored.items():
            if tensors[name].shape != value.shape:
                raise PalError(f"{path}: {name!r} has shape {tuple(value.shape)}, this model's has {tuple(tensors[name].shape)}")
            tensors[name].copy_(value)


def _with_checkpoints(config: PalConfig, bases: Bases) -> dict[str, Any]:
    """The audio configuration with the encoders that have a base as the recipe named them."""
    audio: dict[str, Any] = json.loads(json.dumps(config.audio_config))
    for name, base in bases.encoders.items():
        audio["encoders"][name] = {**(base.config or {}), "checkpoint": base.name}
    return audio


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers themselves, by every name they have."""
    return dict(model.state_dict(keep_vars=True))


def _base_of(name: str, tensor: Tensor, bases: Bases) -> str | None:
    """The prefix of the base that gives a tensor: none does for buffers, which change by use, for an adapter, and for 4-bit
    weights, whose bits depend on the machine that quantised them."""
    if not isinstance(tensor, nn.Parameter) or is_adapter_parameter(name) or not tensor.is_floating_point():
        return None
    return next((prefix for prefix in bases.parts if name.startswith(prefix)), None)


def _digest(model: nn.Module, prefix: str, stored: dict[str, Tensor]) -> str:
    """SHA-256 of the parameters of a base that are not stored."""
    tensors = _tensors(model)
    covered = {id(tensors[name]) for name in stored}
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix) and isinstance(tensor, nn.Parameter)}
    left = _without_repeats(
        (name, own[name]) for name in sorted(own) if id(own[name]) not in covered and not is_adapter_parameter(name)
    )
    digest = hashlib.sha256()
    for name, tensor in left.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_repeats(items: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Each tensor under the first of its names (tied weights)."""
    seen: set[int] = set()
    return {name: tensor for name, tensor in items if not (id(tensor) in seen or seen.add(id(tensor)))}  # type: ignore[func-returns-value]


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s options that say how a file is fetched."""
    return {name: value for name, value in options.items() if name in _HUB and value is not None}


def _read(path: str, options: dict[str, Any]) -> dict[str, Tensor]:
    try:
        return dict(load_file(str(cached_file(path, _WEIGHTS, **options))))
    except (OSError, SafetensorError) as error:
        raise PalError(f"{path}: {_WEIGHTS} cannot be read: {' '.join(str(error).split())}") from error


def _located(name: str) -> str:
    """A folder by its absolute path, a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
