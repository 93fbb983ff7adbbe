"""A model as a folder: written under another name, synced, then renamed, so that it is whole or not there."""

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from pal_audio.encoders import AudioEncoder
from pal_audio.errors import PalError
from pal_audio.model.adapters import merge_adapter
from pal_audio.model.building import load
from pal_audio.model.modeling import PalForConditionalGeneration
from pal_audio.model.processing import PalProcessor
from pal_audio.model.trained import Bases, write_trained


def export(model_folder: str | Path, out: str | Path, merge: bool = False, overwrite: bool = False) -> Path:
    """Copy a model into a self-contained folder.

    Args:
        model_folder: what `load` reads.
        out: a new or empty folder.
        merge: add the LLM's adapter to its weights and leave it out.
        overwrite: replace a model that is in `out`.

    Raises:
        PalError: `out` is not empty, or holds something that is no model; or there is no model to export.
    """
    source, target = Path(model_folder), Path(out)
    _check_target(source, target, overwrite)
    model, processor = load(source)
    if merge and model.config.adapter is None:
        warnings.warn(f"--merge has no effect: {source} has no adapter", stacklevel=2)
    if merge:
        model.merge_adapter()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_folder(model, processor, target)
    return target


def save_folder(model: PalForConditionalGeneration, processor: PalProcessor, target: Path) -> None:
    """Save a model and its processor as one folder; what stands at `target` is replaced when the new one is whole."""
    with replaced_folder(target) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def save_trained(
    model: PalForConditionalGeneration, processor: PalProcessor, target: Path, bases: Bases, trained: Iterable[nn.Parameter]
) -> None:
    """Save what training made of a model, as one folder; see `model.trained`, and `save_folder`.

    Args:
        model, processor: as a whole.
        target: the folder.
        bases: where the rest comes from.
        trained: parameters that training may have changed.
    """
    with replaced_folder(target) as temporary:
        write_trained(model, bases, trained, temporary)
        processor.save_pretrained(temporary)


def save_llm(llm: Any, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Save an LLM and its tokenizer as transformers does, so that `model.llm` of a recipe may name the folder.

    An adapter is added to the weights first, in place. What stands at `target` is replaced when the new folder is whole.
    """
    merge_adapter(llm)
    with replaced_folder(target) as temporary:
        llm.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_encoder(encoder: AudioEncoder, target: Path) -> None:
    """Save an encoder so that `checkpoint` of its type may name the folder; as `save_folder` does."""
    with replaced_folder(target) as temporary:
        encoder.save_checkpoint(temporary)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `target` when it is whole and synced."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with _without_bars():
        yield temporary
    for path in (*sorted(temporary.rglob("*")), temporary):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    sync(target.parent)


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise PalError(f"{target} is a file; give a folder")
    if target.resolve() == source.resolve() or target.resolve() in source.resolve().parents:
        raise PalError(f"{target} holds the model that is to be exported; choose another folder")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise PalError(f"{target} is not empty; choose another folder, or --overwrite")
        if not (target / "config.json").is_file():
            raise PalError(f"{target} holds something that is no model; delete it yourself or choose another folder")


@contextmanager
def _without_bars() -> Iterator[None]:
    """No bar for the writing of shards: it would stand below a bar of ours that has ended."""
    bars = transformers.utils.logging
    were_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            bars.enable_progress_bar()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
