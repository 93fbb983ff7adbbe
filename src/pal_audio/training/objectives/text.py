"""`text`: the language model learns text alone, every token of it.

An example's text is its messages as the chat template renders them, without its clips. A document is learnt from its first
token on: it stands between the tokenizer's beginning and end tokens (the end token twice where there is no other). A text
longer than `max_tokens` is cut into pieces that overlap by one token, so that each token is predicted exactly once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.data.texts import Document
from pal_audio.errors import PalError
from pal_audio.model import PalForConditionalGeneration
from pal_audio.model.messages import escape
from pal_audio.model.parts import Parts
from pal_audio.training.batches import Size
from pal_audio.training.objectives.llm import LlmObjective
from pal_audio.training.recipe import Stage

DEFAULT_MAX_TOKENS = 1024
_SCORED_TOGETHER = 16


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive tokens (L,) of a text, L >= 2; all but the first are predicted."""

    ids_L: np.ndarray
    name: str


class TextObjective(LlmObjective[Piece]):
    """Cross-entropy over all tokens but a piece's first (units).

    Args:
        model: its LLM trains.
        collator: has the tokenizer.
        stage: says which parts of the LLM, and the longest piece.

    Raises:
        PalError: `max_tokens` is over the LLM's context.
    """

    def __init__(self, model: PalForConditionalGeneration | Parts, collator: Collator, stage: Stage) -> None:
        super().__init__(model, stage)
        self.tokenizer = collator.processor.tokenizer
        context = getattr(model.language_model.config.get_text_config(), "max_position_embeddings", None)
        if stage.max_tokens is not None and context is not None and stage.max_tokens > context:
            raise PalError(f"stage {stage.name!r}: max_tokens {stage.max_tokens} is over the LLM's context of {context} tokens")
        self.max_tokens: int = stage.max_tokens or min(DEFAULT_MAX_TOKENS, context or DEFAULT_MAX_TOKENS)

    def prepare(self, train: Sequence[Example], test: Sequence[Example]) -> Sequence[Piece]:
        self._held_out: dict[str, list[Example]] = {
            "documents": [example for example in test if isinstance(example, Document)],
            "conversations": [example for example in test if not isinstance(example, Document)],
        }
        of_text: dict[int, list[Piece]] = {}  # a weighted source holds an example more than once
        for example in train:
            if id(example) not in of_text:
                of_text[id(example)] = self.pieces(example)
        self._pieces = [piece for example in train for piece in of_text[id(example)]]
        return self._pieces

    def held_out(self) -> Sequence[Piece]:
        return [piece for examples in self._held_out.values() for example in examples for piece in self.pieces(example)]

    def notes(self) -> list[str]:
        num_tokens = sum(len(piece.ids_L) - 1 for piece in self._pieces)
        return [f"text: {num_tokens:,} tokens in {len(self._pieces):,} pieces of at most {self.max_tokens}"]

    def text(self, example: Example) -> str:
        """What is learnt of an example, without the tokens around a document."""
        if isinstance(example, Document):
            return escape(example.messages[0].text)
        messages = [{"role": message.role, "content": escape(message.text)} for message in example.messages]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    def pieces(self, example: Example) -> list[Piece]:
        """An example's tokens, cut."""
        ids: list[int] = self.tokenizer(self.text(example), add_special_tokens=False, verbose=False)["input_ids"]
        if isinstance(example, Document):
            begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            ids = [*_some(end if begin is None else begin), *ids, *_some(end)]
        starts = range(0, len(ids) - 1, self.max_tokens - 1)
        return [Piece(np.array(ids[start : start + self.max_tokens], dtype=np.int64), example.id) for start in starts]

    def size(self, item: Piece) -> Size:
        return Size(0.0, len(item.ids_L), item.name)

    def inputs(self, items: Sequence[Piece]) -> dict[str, Any]:
        rows = [torch.from_numpy(item.ids_L) for item in items]
        pad_id = next(token for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if token is not None)
        return {
            "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id),
            "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100),
        }

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        loss: Tensor = module(**inputs, num_items_in_batch=num_units, use_cache=False).loss
        return loss

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Perplexity of a token, and bits of a character of the text, over held-out documents and over conversations."""
        scores: dict[str, float] = {}
        self.module.eval()
        device = next(self.module.parameters()).device
        for kind, examples in self._held_out.items():
            pieces = sorted((piece for example in examples for piece in self.pieces(example)), key=lambda piece: len(piece.ids_L))
            if not pieces:
                continue
            nats, num_tokens = 0.0, 0
            for start in range(0, len(pieces), _SCORED_TOGETHER):
                inputs = {key: value.to(device) for key, value in self.inputs(pieces[start : start + _SCORED_TOGETHER]).items()}
                nats += float(self.loss(self.module, inputs, 1))
                num_tokens += self.num_units(inputs)
            scores[f"{kind}.perplexity"] = math.exp(nats / num_tokens)
            scores[f"{kind}.bits_per_character"] = nats / math.log(2) / sum(len(self.text(example)) for example in examples)
            scores[f"{kind}.num_tokens"] = num_tokens
        return scores


def _some(token: int | None) -> list[int]:
    return [] if token is None else [token]
