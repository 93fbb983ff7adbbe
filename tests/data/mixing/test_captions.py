"""Captions: written and read back, whatever the groups."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pal_audio.data.mixing import caption, parse_caption
from pal_audio.data.mixing.captions import check_clauses
from pal_audio.data.mixing.vocabulary import _SOUNDS, clause_of, noun_of
from pal_audio.errors import PalError

CLAUSES = {label: clause_of(label, "sound") for label in _SOUNDS}
groups = st.lists(st.lists(st.sampled_from(sorted(CLAUSES)), min_size=1, max_size=2), min_size=1, max_size=5)


@given(groups)
def test_what_is_written_is_read_back(order: list[list[str]]) -> None:
    assert parse_caption(caption(order, CLAUSES), CLAUSES) == order


def test_the_grammar() -> None:
    text = caption([["dog"], ["rain", "church bells"]], CLAUSES)
    assert text == "a dog barks, then rain falls while church bells ring"
    for wrong in ("a dog barks, rain falls", "a dog barks while rain falls while a siren wails", "", "a dog barks, then "):
        with pytest.raises(PalError, match="no caption"):
            parse_caption(wrong, CLAUSES)


def test_clauses_that_could_not_be_told_apart_are_refused() -> None:
    check_clauses(CLAUSES)
    for clauses, words in (
        ({"a": "x", "b": "x"}, "'a' and 'b' both read 'x'"),
        ({"a": "x while y"}, "without"),
        ({"a": "x, then y"}, "without"),
        ({"a": " "}, "must be words"),
    ):
        with pytest.raises(PalError, match=words):
            check_clauses(clauses)


def test_labels_read_by_category() -> None:
    assert (noun_of("organ", "instrument"), clause_of("organ", "instrument")) == ("an organ", "an organ plays")
    assert (noun_of("seven", "digit"), clause_of("seven", "digit")) == ("the word seven", "a voice says seven")
    assert (noun_of("kettle", "sound"), clause_of("kettle", "sound")) == ("kettle", "kettle")
