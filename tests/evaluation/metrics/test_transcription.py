"""Error rates: by hand, against jiwer on the whole set, and with Whisper's own normaliser."""

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.statistics import bootstrap_interval, ratio_of_sums
from pal_audio.evaluation.metrics.transcription import ItemErrors, cer, normalise, word_errors
from tests.evaluation.metrics.golden import golden

SENTENCES = st.lists(st.sampled_from("one two three four".split()), min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize("case", golden("normaliser"), ids=lambda case: case["text"][:20])
def test_the_normalisers_are_those_of_whisper(case: dict) -> None:
    assert normalise(case["text"], "english") == " ".join(case["english"].split())
    assert normalise(case["text"], "basic") == " ".join(case["basic"].split())


def test_word_errors_by_hand() -> None:
    # "a b c" -> "a x c d": one substitution and one insertion. "e f" -> "e": one deletion.
    result = word_errors(["a b c", "e f"], ["a x c d", "e"], "none")
    assert result.per_item == (ItemErrors(2, 3), ItemErrors(1, 2))
    assert (result.num_errors, result.num_words, result.num_dropped) == (3, 5, 0)
    assert result.wer == pytest.approx(3 / 5)  # not the mean of 2/3 and 1/2


def test_more_insertions_than_words() -> None:
    assert word_errors(["a"], ["b c d"], "none").wer == 3


def test_cer_by_hand() -> None:
    result = cer(["abc de"], ["abx de"], "none")
    assert (result.num_errors, result.num_words) == (1, 6)  # the space is a character


def test_both_sides_are_normalised() -> None:
    assert word_errors(["The COLOUR, twenty-one!"], ["the color 21"]).num_errors == 0
    assert word_errors(["the color 21"], ["The COLOUR, twenty-one!"]).num_errors == 0
    assert word_errors(["The COLOUR"], ["the color"], "basic").num_errors == 1
    assert word_errors(["The COLOUR"], ["the color"], "none").num_errors == 2


def test_empty_references_are_dropped_and_counted() -> None:
    result = word_errors(["(laughs)", "a b", ""], ["some words", "a", ""])
    assert (result.num_errors, result.num_words, result.num_dropped) == (1, 2, 2)
    assert result.per_item == (ItemErrors(0, 0), ItemErrors(1, 2), ItemErrors(0, 0))


def test_an_empty_answer_is_all_missing() -> None:
    assert word_errors(["a b", "c"], ["", "c"], "none").per_item == (ItemErrors(2, 2), ItemErrors(0, 1))


def test_items_can_be_resampled() -> None:
    result = word_errors(["a b c", "e f", "g"], ["a x c d", "e", "g"], "none")
    values = [[item.num_errors, item.num_words] for item in result.per_item]
    assert result.wer in bootstrap_interval(values, ["1", "2", "3"], ratio_of_sums)


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_set_has_the_rate_of_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [truth for truth, _ in pairs], [said for _, said in pairs]
    assert word_errors(references, hypotheses, "none").wer == pytest.approx(jiwer.wer(references, hypotheses))
    assert cer(references, hypotheses, "none").wer == pytest.approx(jiwer.cer(references, hypotheses))


@pytest.mark.parametrize(
    ("references", "hypotheses", "normaliser", "message"),
    [
        (["a"], [], "none", "1 references but 0 hypotheses"),
        ([], [], "none", "no references"),
        (["[noise]"], ["a"], "english", "all 1 are empty"),
        (["a"], ["a"], "whisper", "unknown normaliser 'whisper': choose one of english, basic, none"),
    ],
)
def test_what_has_no_error_rate(references: list[str], hypotheses: list[str], normaliser: str, message: str) -> None:
    with pytest.raises(PalError, match=message):
        word_errors(references, hypotheses, normaliser)
