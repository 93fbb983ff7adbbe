"""Which choice an answer names: the tricky forms one by one, and what holds for any of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.choices import string_match
from pal_audio.evaluation.parsers import bare_choice, letter_of, parse_choice, parse_label

ANIMALS = ["dog", "dog barking", "cat", "a red car"]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        # the bare text: case, punctuation, articles, quotes, markdown
        ("dog", 0),
        ("Dog.", 0),
        ("  DOG BARKING ", 1),
        ("A cat", 2),
        ("the red car", 3),
        ("red car!", 3),
        ("“Cat”", 2),
        ("'cat'.", 2),
        ("**cat**", 2),
        # a letter alone
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("[B]", 1),
        ("B.", 1),
        ("B)", 1),
        ("**C**", 2),
        ("Option C", 2),
        ("Option C is correct", 2),
        ("C because it meows", 2),
        ("C\nIt meows.", 2),
        # a letter and its text
        ("(B) dog barking", 1),
        ("C. cat", 2),
        ("c) cat", 2),
        ("C: cat", 2),
        ("C, cat", 2),
        ("D. red car", 3),
        # phrases
        ("The answer is cat.", 2),
        ("The answer is B.", 1),
        ("The correct answer is (D) a red car.", 3),
        ("Answer: C", 2),
        ("I think it is a cat because of the meowing", 2),
        ("I, for one, say cat", 2),
        ("I hear a dog and a cat. The answer is cat", 2),
        # a letter and a text that disagree, and letters that no choice has
        ("(A) cat", None),
        ("B. cat", None),
        ("(F) dog", None),
        ("F", None),
        # denial
        ("not a dog", None),
        ("It is not a dog but a cat", 2),
        ("It isn't a dog. It is a cat.", 2),
        ("It isn't a dog, or a cat", None),
        ("neither a dog nor a cat", None),
        ("no dog", None),
        ("not :dog", None),
        ("The dog is not there", None),
        ("A dog? The dog isn't there, a cat is", None),
        ("The answer is dog, not cat", 0),
        ("a dog rather than a cat", 0),
        ("The answer is not cat", None),
        ("I don't think the answer is dog", None),
        ("Not (A) but (C)", 2),
        ("(A) not a dog", None),
        ("No. It's a cat", 2),
        # two of them
        ("A and B", None),
        ("(A) or (B)", None),
        ("dog or cat", None),
        ("The answer is dog or cat", None),
        ("A. dog\nB. dog barking\nC. cat\nD. a red car", None),
        # one inside another
        ("a dog barking loudly", 1),
        ("The dog is barking", 0),
        ("dog barking, a dog", None),
        # none
        ("", None),
        (" \n ", None),
        ("...", None),
        ("I do not know", None),
        ("hotdog", None),
        ("cats", None),
        ("The answer is", None),
        ("dog(s)", 0),
    ],
)
def test_choices(answer: str, named: int | None) -> None:
    assert parse_choice(answer, ANIMALS) == named


@pytest.mark.parametrize(
    ("answer", "choices", "named"),
    [
        # signs and numbers
        ("It is 5", ["5", "-5", "5.5", "15"], 0),
        ("It is -5.", ["5", "-5", "5.5", "15"], 1),
        ("exactly 5.5.", ["5", "-5", "5.5", "15"], 2),
        ("5 to 15", ["5", "-5", "5.5", "15"], None),
        ("-7", ["7", "8"], None),
        ("It is 7/2", ["7", "8"], None),
        ("1,000 dogs", ["1", "1,000"], 1),
        ("It is 7/2", ["2", "8"], None),
        ("It is 3.5", ["5", "8"], None),
        ("It is C", ["C#", "F#"], None),
        ("I think it is F# here", ["C#", "F#"], 1),
        ("It is C#", ["C", "C#", "D"], 1),
        ("It is C", ["C", "C#", "D"], 0),
        ("It is C#", ["C", "D"], None),
        ("it is c# minor", ["C minor", "A minor", "C# minor"], 2),
        ("It is in A minor.", ["C minor", "A minor", "C# minor"], 1),
        ("It is in B minor.", ["C minor", "A minor"], None),
        ("It is in B minor.", ["A minor", "C major"], None),
        ("It is in A minor.", ["A minor", "C major"], 0),
        ("It is A:min/P5.", ["A:min/P5", "E:maj/P1"], 0),
        ("It is G:min/P5.", ["A:min/P5", "E:maj/P1"], None),
        ("It is not A:min/P5.", ["A:min/P5", "E:maj/P1"], None),
        ("+", ["+", "-"], 0),
        # choices that are letters: the whole answer is a text, a mark could be either
        ("G", ["E", "G", "C"], 1),
        ("The answer is G.", ["E", "G", "C"], 1),
        ("(C)", ["E", "G", "C"], None),
        ("(C) C", ["E", "G", "C"], 2),
        ("(B) C", ["E", "G", "C"], None),
        ("(B)", ["A", "B", "C"], 1),
        # choices that deny
        ("It is not loud", ["not loud", "loud"], 0),
        ("loud", ["not loud", "loud"], 1),
        ("No", ["Yes", "No"], 1),
        ("No, there is none.", ["Yes", "No"], 1),
        ("There is no dog", ["dog", "no dog"], 1),
        # choices that carry their letters, equal ones, and one without a text
        ("cat", ["(A) dog", "(B) cat"], 1),
        ("B", ["A. dog", "B. cat"], 1),
        ("dog", ["dog", "Dog", "cat"], 0),
        ("(B) dog", ["dog", "Dog", "cat"], 0),
        ("I think (B), a dog", ["dog", "Dog", "cat"], 0),
        ("C!", ["E", "C"], 1),
        ("cat", ["dog", "", "cat"], 2),
        ("(B)", ["dog", "", "cat"], 1),
        ("", ["dog", ""], None),
        ("狗", ["狗", "猫"], 0),
    ],
)
def test_choices_of_other_kinds(answer: str, choices: list[str], named: int | None) -> None:
    assert parse_choice(answer, choices) == named


def test_more_than_26_choices() -> None:
    choices = [f"sound {index}" for index in range(60)]
    assert [letter_of(index) for index in (0, 25, 26, 27, 51, 52, 701)] == ["A", "Z", "AA", "AB", "AZ", "BA", "ZZ"]
    assert [parse_choice(letter_of(index), choices) for index in range(60)] == list(range(60))
    assert [parse_choice(f"({letter_of(index)}) sound {index}", choices) for index in range(60)] == list(range(60))
    assert parse_choice("(BI)", choices) is None
    assert parse_choice("No, it is sound 3", choices) == 3
    with pytest.raises(PalError, match="choice 702 has no letter"):
        letter_of(702)


@pytest.mark.parametrize("choices", [[], ["", " "]])
def test_choices_without_a_text(choices: list[str]) -> None:
    with pytest.raises(PalError, match="choices has a text"):
        parse_choice("dog", choices)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("crying baby", 0),
        ("Crying_Baby", 0),
        ("Audio caption: A crying baby in a room", 0),
        ("not a crying baby", None),
        ("rain and a crying baby", None),
        ("A", None),  # letters name no label
        ("(B)", None),
        ("sea waves", 2),
        ("", None),
    ],
)
def test_labels(answer: str, named: int | None) -> None:
    assert parse_label(answer, ["crying_baby", "rain", "sea_waves"]) == named


def test_bare_choice() -> None:
    assert bare_choice("(B) dog barking", ANIMALS) == "dog barking"
    assert bare_choice("the answer is: a RED car", ANIMALS) == "a red car"
    assert bare_choice("not a dog", ANIMALS) == ""
    assert bare_choice("C", ["(A) dog", "(B) cat", "(C) cow"]) == "(C) cow"


@pytest.mark.parametrize(
    "form", ["{text}", "({letter}) {text}", "{letter}. {text}", "The answer is {text}.", "{letter}", "({letter})"]
)
def test_the_official_rule_takes_what_bare_choice_gives(form: str) -> None:
    choices = ["A dog, then a bell", "a bell", "The sound of rain", "Nothing (b)"]
    for index, text in enumerate(choices):
        answer = bare_choice(form.format(letter=letter_of(index), text=text), choices)
        assert [string_match(answer, truth, choices) for truth in choices] == [truth == text for truth in choices]


WORDS = st.sampled_from(["dog", "cat", "rain", "red", "loud", "5", "wind", "bell"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=2, max_size=30, unique=True)
FORMS = [
    "{text}",
    "{letter}",
    "({letter})",
    "{letter}. {text}",
    "({letter}) {text}",
    "The answer is {text}.",
    "{upper}!",
    "It is the {text}",
]


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.data(), st.sampled_from(FORMS))
def test_every_choice_is_named_by_every_form(choices: list[str], data: st.DataObject, form: str) -> None:
    index = data.draw(st.integers(0, len(choices) - 1))
    answer = form.format(text=choices[index], upper=choices[index].upper(), letter=letter_of(index))
    assert parse_choice(answer, choices) == index


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.data(), st.sampled_from(["not {}", "It is not the {}", "no {}", "{} is not it", "There isn't any {}"]))
def test_what_is_denied_is_never_named(choices: list[str], data: st.DataObject, form: str) -> None:
    assert parse_choice(form.format(data.draw(st.sampled_from(choices))), choices) is None


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.data())
def test_a_letter_never_overrules_a_text(choices: list[str], data: st.DataObject) -> None:
    letter, text = data.draw(st.integers(0, len(choices) - 1)), data.draw(st.integers(0, len(choices) - 1))
    named = parse_choice(f"({letter_of(letter)}) {choices[text]}", choices)
    assert named == (letter if letter == text else None)


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.data(), st.text(alphabet="dogcatrainABC.,() not\n", max_size=40))
def test_labels_do_not_depend_on_their_order(labels: list[str], data: st.DataObject, answer: str) -> None:
    turned = data.draw(st.permutations(labels))
    named, again = parse_label(answer, labels), parse_label(answer, turned)
    assert (named is None) == (again is None)
    assert named is None or labels[named] == turned[again]


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60), st.lists(st.text(max_size=10), max_size=5))
def test_any_text_is_read_without_an_error(answer: str, choices: list[str]) -> None:
    for parse in (parse_choice, parse_label):
        named = parse(answer, [*choices, "dog"])
        assert named is None or 0 <= named <= len(choices)
