"""The official rule of MMAU and MMAR."""

import pytest

from pal_audio.evaluation.metrics.choices import string_match
from tests.evaluation.metrics.golden import golden


def test_it_decides_as_the_official_script() -> None:
    cases = golden("choices")
    assert {right for *_, right in cases} == {True, False}
    for answer, truth, choices, right in cases:
        assert string_match(answer, truth, choices) is right, (answer, truth, choices)


@pytest.mark.parametrize(
    ("answer", "truth", "choices", "right"),
    [
        ("Dog", "dog", ["dog", "cat"], True),
        ("", "dog", ["dog", "cat"], False),
        (" ?! ", "dog", ["dog", "cat"], False),
        ("dog and cat", "dog", ["dog", "cat"], False),
        ("barking dog", "dog barking", ["dog barking", "cat"], True),  # sets have no order
        ("dog", "dog barking", ["dog barking", "cat"], False),
        ("a big dog", "a dog", ["a dog", "a cat"], True),  # "a" is shared
        ("dog barking", "dog", ["dog", "dog barking"], False),
        ("not a dog", "dog", ["dog", "cat"], True),  # the rule's own fault
        ("dog.", "Dog!", ["dog", "Dog!", "cat"], True),  # the same words are no wrong choice
    ],
)
def test_by_hand(answer: str, truth: str, choices: list[str], right: bool) -> None:
    assert string_match(answer, truth, choices) is right
