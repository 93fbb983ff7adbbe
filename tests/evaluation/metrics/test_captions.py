"""CIDEr-D and BLEU: against published implementations, by hand, and what must always hold."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.captions import bleu, cider_d, tokenise
from tests.evaluation.metrics.golden import golden

GOLDEN = golden("captions")
CANDIDATES = [item["candidate"] for item in GOLDEN["items"]]
REFERENCES = [item["references"] for item in GOLDEN["items"]]
WORDS = st.lists(st.sampled_from("dog barks cat a the loudly".split()), max_size=8).map(" ".join)
SETS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=2, max_size=5)


@pytest.mark.parametrize("case", GOLDEN["tokens"], ids=lambda case: case["text"][:20])
def test_tokens_are_those_of_the_java_tool(case: dict) -> None:
    assert tokenise(case["text"]) == case["tokens"]


def test_tokens_by_hand() -> None:
    assert tokenise("It's raining (hard), isn't it?") == "it 's raining -lrb- hard -rrb- is n't it".split()
    assert tokenise("") == tokenise(" .,;") == []


def test_cider_d_is_that_of_coco_caption() -> None:
    corpus, per_item = cider_d(CANDIDATES, REFERENCES)
    assert corpus == pytest.approx(GOLDEN["cider_d"], rel=1e-12)
    assert per_item == pytest.approx(GOLDEN["cider_d_per_item"], rel=1e-12)


def test_cider_d_is_that_of_aac_metrics() -> None:
    assert cider_d(CANDIDATES, REFERENCES)[0] == pytest.approx(golden("aac_metrics")["corpus"]["cider_d"], rel=1e-12)


def test_cider_d_by_hand() -> None:
    # Every n-gram is in one of two items and weighs log 2. "dog barks" equals its reference for n = 1 and 2; none is longer.
    # "big cat" against "cat": one word of two is shared, cosine 1/sqrt 2, and it is a word longer.
    corpus, per_item = cider_d(["dog barks", "big cat"], [["dog barks"], ["cat"]])
    second = 10 * math.exp(-1 / (2 * 6**2)) / math.sqrt(2) / 4
    assert per_item == pytest.approx([5.0, second])
    assert corpus == pytest.approx((5.0 + second) / 2)


def test_repeating_a_word_of_the_reference_does_not_pay() -> None:
    once, often = (cider_d([text, "x"], [["dog barks"], ["y"]])[1][0] for text in ("dog", "dog dog dog dog dog"))
    assert often < once


def test_the_weights_come_from_the_references_of_the_whole_set() -> None:
    alone = cider_d(CANDIDATES[:2], REFERENCES[:2])[1]
    assert alone != pytest.approx(cider_d(CANDIDATES, REFERENCES)[1][:2])


def test_bleu_is_that_of_published_scorers() -> None:
    values = list(bleu(CANDIDATES, REFERENCES).values())
    assert values == pytest.approx(GOLDEN["bleu_sacre"], rel=1e-12)
    assert values == pytest.approx(GOLDEN["bleu_coco"], abs=1e-6)  # which adds tiny numbers
    assert values[3] == pytest.approx(golden("aac_metrics")["corpus"]["bleu_4"], abs=1e-6)


def test_bleu_by_hand() -> None:
    # "the" counts twice, as often as the reference with most has it: 2 of 7. No bigram.
    scores = bleu(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]], max_n=2)
    assert scores == {"bleu_1": pytest.approx(2 / 7), "bleu_2": 0.0}
    # Three words of three, one short of the reference.
    assert bleu(["a dog barks"], [["a dog barks loudly"]], max_n=1) == {"bleu_1": pytest.approx(math.exp(1 - 4 / 3))}
    # References of 2 and 4 words are as near to 3: the shorter counts, so nothing is taken off.
    assert bleu(["a dog barks"], [["a dog barks loudly", "dog barks"]], max_n=1) == {"bleu_1": pytest.approx(1.0)}
    assert bleu([""], [["a dog"]], max_n=1) == {"bleu_1": 0.0}


@given(SETS)
@settings(max_examples=50, deadline=None)
def test_scores_stay_in_their_range_and_do_not_depend_on_order(items: list[tuple[str, list[str]]]) -> None:
    candidates, references = [text for text, _ in items], [texts for _, texts in items]
    corpus, per_item = cider_d(candidates, references)
    assert all(-1e-9 <= value <= 10 + 1e-9 for value in per_item)
    assert corpus == pytest.approx(sum(per_item) / len(per_item))
    turned = cider_d(candidates[::-1], [texts[::-1] for texts in references[::-1]])
    assert turned[1][::-1] == pytest.approx(per_item)
    scores = bleu(candidates, references)
    assert all(0 <= value <= 1 + 1e-9 for value in scores.values())
    assert bleu(candidates[::-1], references[::-1]) == pytest.approx(scores)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_can_be_tokenised(text: str) -> None:
    assert all(token and not token.isspace() for token in tokenise(text))


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [["a"]], "at least two items"),
        (["a", "b"], [["a"]], "2 candidates but 1 lists"),
        ([], [], "no candidates"),
        (["a", "b"], [["a"], []], "item 1 has no reference"),
        (["a", "b"], [["a"], "bc"], "item 1 has a string"),
    ],
)
def test_what_has_no_cider_d(candidates: list[str], references: list, message: str) -> None:
    with pytest.raises(PalError, match=message):
        cider_d(candidates, references)


def test_bleu_of_no_words_is_refused() -> None:
    with pytest.raises(PalError, match="max_n=0"):
        bleu(["a"], [["a"]], max_n=0)
