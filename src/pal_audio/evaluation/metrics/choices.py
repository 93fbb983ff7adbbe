"""The official rule of MMAU and MMAR for multiple-choice questions."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"\b\w+\b")


def string_match(answer: str, truth: str, choices: Sequence[str]) -> bool:
    """Whether the official scripts of MMAU and MMAR call an answer right.

    Texts are compared as sets of lower-cased words. Right is an answer that holds every word of the truth, and no word of a wrong
    choice except those that the truth has too. An answer without a word is wrong. So "(B) dog" is wrong where another choice
    holds a word "b", and a wrong choice is right where it holds the truth's words: the rule is theirs and is kept.

    Args:
        answer: of the model; give the bare choice text where it can be had (`parsers.bare_choice`).
        truth: text of the right choice.
        choices: all choices, the right one included.

    Source: `string_match` in MMAU's `evaluation.py`; MMAR's is the same.
    """
    answer_words, truth_words = _words(answer), _words(truth)
    wrong_words = {word for choice in choices for word in _words(choice)} - truth_words
    return bool(answer_words) and truth_words <= answer_words and not answer_words & wrong_words


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
