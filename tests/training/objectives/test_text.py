"""`text`: what is learnt of a document and of a conversation, and that nothing is lost where it is cut."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from pal_audio.data import Document, Example, Message
from pal_audio.data.collation import Collator
from pal_audio.data.manifest import AudioPart, TextPart
from pal_audio.errors import PalError
from pal_audio.model import PalForConditionalGeneration
from pal_audio.training.objectives import AnswerObjective, TextObjective
from pal_audio.training.recipe import Stage
from tests.tiny import tiny_model

TALK = [Message(role="user", content="how many sounds?"), Message(role="assistant", content="a bell")]


def document(text: str) -> Document:
    return Document(id="d", messages=[Message(role="user", content=text)])


def made(**stage: Any) -> TextObjective:
    model, processor = tiny_model("llama", "pal")
    return TextObjective(model, Collator(processor), Stage(objective="text", train={"llm": 1e-3}, steps=1, **stage))


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 8, 9, 100])
def test_each_token_of_a_long_text_is_predicted_once(max_tokens: int) -> None:
    objective = made(max_tokens=max_tokens)
    text = "a dog barks twice <|audio|> <|end|> " * 3
    end = objective.tokenizer.eos_token_id
    ids = objective.tokenizer(text.replace("<|audio|>", "< |audio|>"))["input_ids"]
    pieces = objective.pieces(document(text))
    assert [token for piece in pieces for token in piece.ids_L[1:].tolist()] == [*ids, end]
    assert pieces[0].ids_L[0] == end
    assert all(one.ids_L[-1] == other.ids_L[0] for one, other in pairwise(pieces))
    assert max(len(piece.ids_L) for piece in pieces) <= max_tokens
    inputs = objective.inputs(pieces)
    assert objective.num_units(inputs) == len(ids) + 1


def test_a_conversation_is_learnt_as_the_template_writes_it() -> None:
    objective = made()
    (piece,) = objective.pieces(Example(id="t", messages=TALK))
    assert objective.tokenizer.decode(piece.ids_L) == "<|user|>how many sounds?<|end|><|assistant|>a bell<|end|>"


TURNS = [*TALK, Message(role="user", content="and now?"), Message(role="assistant", content="a <|audio|> dog, a dog")]


@pytest.mark.parametrize("max_tokens", [4, 9, 100])
def test_of_a_conversation_the_assistants_words_alone_may_be_learnt(max_tokens: int) -> None:
    objective = made(assistant_only=True, max_tokens=max_tokens)
    pieces = objective.pieces(Example(id="t", messages=TURNS))
    predicted = [token for piece in pieces for token in piece.labels_L[1:].tolist() if token >= 0]
    assert objective.tokenizer.decode(predicted) == "a bell<|end|>a < |audio|> dog, a dog<|end|>"
    assert all(piece.num_predicted for piece in pieces), "what has nothing to learn is no piece"
    assert objective.num_units(objective.inputs(pieces)) == len(predicted)
    whole = made(max_tokens=max_tokens).pieces(Example(id="t", messages=TURNS))
    assert {piece.ids_L.tobytes() for piece in pieces} <= {piece.ids_L.tobytes() for piece in whole}, "the text is the same"


def test_its_labels_are_those_of_answer() -> None:
    objective = made(assistant_only=True)
    (piece,) = objective.pieces(Example(id="t", messages=TURNS))
    batch = objective.collator.training_batch([Example(id="t", messages=TURNS)])
    assert piece.ids_L.tolist() == batch["input_ids"][0].tolist()
    assert piece.labels_L.tolist() == batch["labels"][0].tolist()


def test_documents_are_whole_beside_conversations_of_which_answers_are_learnt() -> None:
    objective = made(assistant_only=True)
    items = [document("a bell"), Example(id="t", messages=TALK)]
    objective.prepare(items, items)
    num_each = len(objective.tokenizer("a bell", add_special_tokens=False)["input_ids"]) + 1  # and the end, of either
    assert objective.notes()[0].startswith(f"text: {2 * num_each} tokens in 2 pieces")
    scores = objective.score()
    (piece,) = objective.pieces(items[1])
    with torch.no_grad():
        logits = objective.model.language_model(input_ids=torch.from_numpy(piece.ids_L)[None]).logits[0, :-1]
    labels = torch.from_numpy(piece.labels_L)[1:]
    nats = float(functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
    num_tokens = int((labels >= 0).sum())
    assert scores["conversations.num_tokens"] == num_tokens
    assert scores["conversations.perplexity"] == pytest.approx(math.exp(nats / num_tokens), rel=1e-5)
    assert scores["conversations.bits_per_character"] == pytest.approx(nats / math.log(2) / len("a bell<|end|>"), rel=1e-5)


def test_where_there_is_no_assistant_it_is_said() -> None:
    objective = made(assistant_only=True)
    with pytest.raises(PalError, match="'t': no message is the assistant's"):
        objective.prepare([Example(id="t", messages=TALK[:1])], [])
    with pytest.raises(PalError, match=r"'t': message 1: .*empty"):
        objective.pieces(Example(id="t", messages=[TALK[0], Message(role="assistant", content=" ")]))
    with pytest.raises(PalError, match="`assistant_only` is of conversations, and there are none"):
        objective.prepare([document("a bell")], [])
    with pytest.raises(ValidationError, match="`assistant_only` belongs to objective text, not answer"):
        Stage(train={"llm": 1e-3}, steps=1, assistant_only=True)


def test_the_loss_and_the_scores_are_those_of_the_bare_model() -> None:
    """Against a loop over single texts with plain torch."""
    objective = made(max_tokens=10)
    documents = [document("a bell"), document("a dog barks twice, how many sounds come before the siren?")]
    objective.prepare([Example(id="t", messages=TALK), *documents], documents)
    pieces = [piece for item in documents for piece in objective.pieces(item)]
    inputs = objective.inputs(pieces)
    nats = 0.0
    with torch.no_grad():
        for piece in pieces:
            ids = torch.from_numpy(piece.ids_L)
            logits = objective.model.language_model(input_ids=ids[None]).logits[0, :-1]
            nats += float(functional.cross_entropy(logits, ids[1:], reduction="sum"))
        loss = objective.loss(objective.module, inputs, objective.num_units(inputs))
    num_tokens = objective.num_units(inputs)
    assert float(loss) == pytest.approx(nats / num_tokens, rel=1e-5)
    scores = objective.score()
    num_characters = sum(len(item.messages[0].text) for item in documents)
    assert scores["documents.perplexity"] == pytest.approx(float(torch.tensor(nats / num_tokens).exp()), rel=1e-5)
    assert scores["documents.bits_per_character"] == pytest.approx(nats / 0.6931471805599453 / num_characters, rel=1e-5)
    assert not any(name.startswith("conversations") for name in scores)


def test_no_hidden_clip_where_no_part_for_sound_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = made()
    model = objective.model
    assert isinstance(model, PalForConditionalGeneration)
    inputs = objective.inputs(objective.pieces(document("a bell")))
    runs = []
    dummy = PalForConditionalGeneration._dummy
    monkeypatch.setattr(PalForConditionalGeneration, "_dummy", lambda self: runs.append(1) or dummy(self))
    model.train()
    objective.parameter_groups()
    objective.loss(model, inputs, 1).backward()  # type: ignore[no-untyped-call]
    assert not runs
    for part in (model.marker, next(model.encoders.parameters()), next(model.streams.parameters())):
        part.requires_grad_(True)
        objective.loss(model, inputs, 1)
        part.requires_grad_(False)
    assert len(runs) == 3


def test_a_piece_fits_the_context() -> None:
    assert made().max_tokens == 512
    with pytest.raises(PalError, match="max_tokens 513 is over the LLM's context of 512"):
        made(max_tokens=513)


def test_weighted_documents_are_learnt_as_often() -> None:
    objective = made()
    item, other = document("a bell"), document("a dog")
    assert len(objective.prepare([item, item, other], [])) == 3
    num_tokens = sum(len(objective.pieces(text)[0].ids_L) - 1 for text in (item, item, other))
    assert objective.notes() == [f"text: {num_tokens} tokens in 3 pieces of at most 512"]


def test_answers_to_text_alone_teach_no_part_for_sound_and_the_plan_says_so() -> None:
    model, processor = tiny_model("llama", "pal")

    def notes(examples: list[Example], **rates: float) -> list[str]:
        objective = AnswerObjective(model, Collator(processor), Stage(train=rates, steps=1))
        objective.prepare(examples, [])
        return objective.notes()

    told = [Example(id="t", messages=TALK)]
    heard = Example(id="a", messages=[Message(role="user", content=[AudioPart(path="a.wav"), TextPart(text="?")]), TALK[1]])
    expected = "answer: no training example has sound, so nothing teaches connector, projector"
    assert notes(told, connector=1e-3, projector=1e-3, llm=1e-3) == [expected]
    assert notes(told, llm=1e-3) == []
    assert notes([*told, heard], connector=1e-3) == []
