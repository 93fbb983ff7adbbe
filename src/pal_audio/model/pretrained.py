"""Published language models: configuration and tokenizer, then weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from pal_audio.errors import PalError
from pal_audio.model.four_bit import load_four_bit


def llm_without_weights(name: str, revision: str | None) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Text configuration and tokenizer of a hub id or folder.

    Raises:
        PalError: they cannot be had.
    """
    with _named(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    return config.get_text_config(), tokenizer


def llm_weights(name: str, revision: str | None, in_four_bit: bool = False) -> Any:
    """The model of a hub id or folder, in float32 whatever was published: the other parts are, and small steps are lost in
    bfloat16 weights. With `in_four_bit` the layers' linear modules are `FourBitLinear`.

    Raises:
        PalError: it cannot be had, or has no safetensors.
    """
    with _named(name):
        if in_four_bit:
            return load_four_bit(name, revision)
        return AutoModelForCausalLM.from_pretrained(
            name, revision=revision, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PalError(f"model.llm: {name!r} cannot be loaded: {reason}") from error
