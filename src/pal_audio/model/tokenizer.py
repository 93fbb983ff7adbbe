"""A small tokenizer for LLMs that are trained from nothing: byte-level BPE, so any text can be written."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pal_audio.errors import PalError

PAD, END = "<|pad|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_SPECIAL = [PAD, END, *_ROLES]
_BYTES = pre_tokenizers.ByteLevel.alphabet()
MIN_SIZE = len(_BYTES) + len(_SPECIAL)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def checked_size(size: Any) -> int:
    """`tokenizer: {vocab_size: size}` as a number.

    Raises:
        PalError: it is none, or too small for all bytes and special tokens.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < MIN_SIZE:
        raise PalError(
            f"model.llm: tokenizer: vocab_size must be a whole number of {MIN_SIZE} at least ({len(_BYTES)} bytes and "
            f"{len(_SPECIAL)} special tokens), got {size!r}"
        )
    return size


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template.

    Args:
        texts: what it will write; their order does not matter.
        vocab_size: entries at most, all bytes and special tokens among them.

    Raises:
        PalError: `vocab_size` is too small for these.

    Source: byte-level BPE as GPT-2's; the template is our choice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=checked_size(vocab_size),
        special_tokens=_SPECIAL,
        initial_alphabet=_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.add_special_tokens({"additional_special_tokens": list(_ROLES)})
    fast.chat_template = CHAT_TEMPLATE
    return fast
