"""`text`: the language model learns text alone, every token of it, or of conversations the assistant's words (`assistant_only`).

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
from pal_audio.model.messages import Conversation, assistant_spans, escape
from pal_audio.model.parts import Parts
from pal_audio.model.text_rows import tokenise
from pal_audio.training.batches import Size
from pal_audio.training.objectives.llm import LlmObjective
from pal_audio.training.recipe import Stage

DEFAULT_MAX_TOKENS = 1024
_SCORED_TOGETHER = 16


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive tokens (L,) of a text, L >= 2; of all but the first those with a label are predicted."""

    ids_L: np.ndarray
    name: str
    labels_L: np.ndarray

    @property
    def num_predicted(self) -> int:
        return int((self.labels_L[1:] >= 0).sum())


class TextObjective(LlmObjective[Piece]):
    """Cross-entropy over all tokens but a piece's first, or the assistant's among them (units).

    Args:
        model: its LLM trains.
        collator: has the tokenizer.
        stage: says which parts of the LLM, and the longest piece.

    Raises:
        PalError: `max_tokens` is over the LLM's context; `assistant_only`, and there is no assistant or no place for its words.
    """

    inputs_read = ("tokenizer",)

    def __init__(self, model: PalForConditionalGeneration | Parts, collator: Collator, stage: Stage) -> None:
        super().__init__(model, collator, stage)
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
        if self.stage.assistant_only and all(isinstance(example, Document) for example in train):
            raise PalError(f"stage {self.stage.name!r}: `assistant_only` is of conversations, and there are none; take it out")
        return self._pieces

    def held_out(self) -> Sequence[Piece]:
        return [piece for examples in self._held_out.values() for example in examples for piece in self.pieces(example)]

    def notes(self) -> list[str]:
        num_tokens = sum(piece.num_predicted for piece in self._pieces)
        return [f"text: {num_tokens:,} tokens in {len(self._pieces):,} pieces of at most {self.max_tokens}"]

    def text(self, example: Example) -> str:
        """What is learnt of an example, without the tokens around a document."""
        return escape(example.messages[0].text) if isinstance(example, Document) else self._render(_conversation(example), False)

    def pieces(self, example: Example) -> list[Piece]:
        """An example's tokens, cut; of an assistant's words alone, the pieces that hold some."""
        text = self.text(example)
        if isinstance(example, Document):
            begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            ids = [*_some(end if begin is None else begin), *self._tokens(text), *_some(end)]
            labels = ids
        elif self.stage.assistant_only:
            ids, labels = tokenise(self.tokenizer, text, iter(()), self._answers(example, text), add_special_tokens=False)
        else:
            labels = ids = self._tokens(text)
        starts = range(0, len(ids) - 1, self.max_tokens - 1)
        ids_L = np.array(ids, dtype=np.int64)
        labels_L = ids_L if labels is ids else np.array(labels, dtype=np.int64)
        spans = [slice(start, start + self.max_tokens) for start in starts]
        pieces = [Piece(ids_L[span], example.id, labels_L[span]) for span in spans]
        return [piece for piece in pieces if piece.num_predicted]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _answers(self, example: Example, text: str) -> list[tuple[int, int]]:
        """Character ranges of the assistant's words.

        Raises:
            PalError: there are none, or the template does not let them be found.
        """
        try:
            spans = assistant_spans(_conversation(example), text, self._render)
        except PalError as error:
            raise PalError(f"example {example.id!r}: {error}") from None
        if not spans:
            raise PalError(f"example {example.id!r}: no message is the assistant's, so `assistant_only` leaves nothing to learn")
        return spans

    def _render(self, messages: Conversation, add_generation_prompt: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))

    def _num_characters(self, example: Example) -> int:
        text = self.text(example)
        if isinstance(example, Document) or not self.stage.assistant_only:
            return len(text)
        return sum(end - start for start, end in self._answers(example, text))

    def size(self, item: Piece) -> Size:
        return Size(0.0, len(item.ids_L), item.name)

    def inputs(self, items: Sequence[Piece]) -> dict[str, Any]:
        rows, labels = [torch.from_numpy(item.ids_L) for item in items], [torch.from_numpy(item.labels_L) for item in items]
        pad_id = next(token for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if token is not None)
        return {
            "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id),
            "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        }

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        loss: Tensor = module(**inputs, num_items_in_batch=num_units, use_cache=False).loss
        return loss

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Perplexity of a predicted token and bits of a predicted character, over held-out documents and over conversations."""
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
            scores[f"{kind}.bits_per_character"] = nats / math.log(2) / sum(map(self._num_characters, examples))
            scores[f"{kind}.num_tokens"] = num_tokens
        return scores


def _conversation(example: Example) -> Conversation:
    return [{"role": message.role, "content": escape(message.text)} for message in example.messages]


def _some(token: int | None) -> list[int]:
    return [] if token is None else [token]
