"""Which choice or label a free answer names. Whatever is not clear is None: an answer is never guessed.

The rules, in this order. Case, kinds of quotes, "_" for a space, asterisks and repeated spaces never matter.

1. The whole answer is a choice's text, quotes and a final . ! ? aside: that choice, even where it could be read as a
   letter. So is that text after the choice's own letter ("B. text").
2. What follows the last "answer is" or "answer:" ("choice", "option") is read alone where anything follows; rule 1 holds for it
   too.
3. Letters name choices: "B" alone, on a line or before "because"; "B.", "B)", "B:", "B," at the start of a line; "(B)", "[B]";
   "option B". Past Z come AA, AB, ... A letter that no choice has names nothing and spoils the answer. Letters inside a
   sentence ("a dog") are words. Where choices are letters themselves, in another order than their own, only rule 1 can tell "B"
   from "(B)".
4. Texts name choices: their words in a row, whole words only, articles aside. Inside a longer choice's text a shorter one is
   not named ("dog" in "dog barking"). Signs such as # and the minus of a number must be there, and articles where they alone
   tell two choices apart, or where a choice starts with another letter ("B minor").
5. What is denied does not count: in a clause (up to . ; : ! ? , a new line or "but"), all that follows not, n't, no, never,
   without, neither, nor, cannot, except, "rather than", "instead of", "other than"; and a text that "is not", "isn't", "is
   wrong" and the like follow. A comma before "or" or "nor" ends no clause.
6. One choice named and not also denied: that one. None, several, or a letter and a text that disagree: None.

Source: our choice. (One published harness takes a random letter where it finds none.)
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pal_audio.errors import PalError

_SAME = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "_": " ", "*": "", "`": "", "−": "-"})
_ARTICLE = re.compile(r"(?<!\S)(?:a|an|the)(?=\s)")
_SIGN = re.compile(r"[^\w\s.,;:!?'\"()\[\]/&-]|(?<!\w)-\d")
_STATED = re.compile(r"\b(?:answer|choice|option)(?:\s+(?:is|would\s+be|should\s+be)\b\s*:?|\s*:)")
_LETTER = r"(?P<letter>[a-z]{1,2})"
_LETTERED = re.compile(rf"[(\[]?{_LETTER}[)\].:,]+\s+")
_MARKS = (
    re.compile(rf"\A\W*{_LETTER}\W*\Z"),
    re.compile(rf"^[^\w\n]*{_LETTER}(?=[.:)\]](?:\s|\Z)|(?<!\bi),\s|[ ]*$|[ ]+(?:because|since|as)\b)", re.MULTILINE),
    re.compile(rf"(?<!\w)[(\[{{]\s*{_LETTER}\s*[)\]}}]"),
    re.compile(rf"\b(?:option|choice|letter|answer)\s+{_LETTER}(?=\s*(?:[.,;:!)]|\Z)|\s+(?:is|because|since|as)\b)"),
)
_CLAUSE_END = re.compile(r"[.;:!?](?=\s|\Z)|(?:(?<!\d),|,(?!\d))(?!\s*n?or\b)|\bbut\b|\n")
_DENIAL = re.compile(r"\b(?:not|no|never|without|neither|nor|cannot|except|rather than|instead of|other than)\b|n't\b")
_DENIED_AFTER = re.compile(
    r"\s+(?:(?:is|are|was|were|does|do|did|can|could|has|have|should|would|will)\s+not\b|\w+n't\b|cannot\b"
    r"|(?:is|are|was|were)\s+(?:wrong|incorrect|unlikely|absent|false)\b)"
)


@dataclass(frozen=True)
class _Mention:
    """A choice named by said[start:end]; index -1 is a letter that no choice has."""

    start: int
    end: int
    index: int


@dataclass(frozen=True)
class _Choices:
    """What answers are compared with.

    Args:
        same_as: for each choice the first one with its text.
        first: index of the first choice of each text.
        patterns: what finds a choice's text inside an answer, with its index.
        are_letters: some choice is a letter, and not its own.
    """

    same_as: tuple[int, ...]
    first: dict[str, int]
    patterns: tuple[tuple[re.Pattern[str], int], ...]
    are_letters: bool

    def of_letter(self, letter: str) -> int | None:
        """Index of the choice with a letter, -1 where there is none; None for two letters that are a word, as "no"."""
        index = _index_of(letter)
        if index < len(self.same_as):
            return self.same_as[index]
        return -1 if len(letter) == 1 else None


def letter_of(index: int) -> str:
    """The letter of a choice: A to Z, then AA, AB, ... ZZ.

    Raises:
        PalError: There is no such letter.
    """
    if not 0 <= index < 26 * 27:
        raise PalError(f"choice {index} has no letter: {26 * 27} choices have one")
    first, second = divmod(index, 26)
    return ("" if first == 0 else chr(ord("A") + first - 1)) + chr(ord("A") + second)


def parse_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the one choice that an answer names by letter or text, after the rules of this module; else None.

    Args:
        answer: of the model.
        choices: the choices' texts in the order of their letters. Letters that all of them carry ("(A) dog") are no part of the
            text. Of choices with the same text the first is meant; one without a text has its letter only.

    Raises:
        PalError: No choice has a text.
    """
    return _parse(answer, choices, with_letters=True)


def parse_label(answer: str, labels: Sequence[str]) -> int | None:
    """Index of the one label that an answer names by its text, after the rules of this module; else None. Letters name nothing
    here.

    Args:
        answer: of the model.
        labels: classes' names; "_" is a space.

    Raises:
        PalError: No label has a text.
    """
    return _parse(answer, labels, with_letters=False)


def bare_choice(answer: str, choices: Sequence[str]) -> str:
    """The text to ask the official rule of MMAU and MMAR about: the choice that is named, or "", which that rule calls wrong.

    The official rule takes letters and phrases like "the answer is" for words of choices, and so calls right answers in those
    forms wrong; and it calls "not a dog" right for "dog". For its verdict on the raw words, give it the answer itself.
    """
    index = parse_choice(answer, choices)
    return "" if index is None else choices[index]


def _parse(answer: str, choices: Sequence[str], with_letters: bool) -> int | None:
    known = _read(tuple(choices))
    said = _plain(answer)
    for candidate in (said, _stated(said)):
        if _bare(candidate) in known.first:
            return known.first[_bare(candidate)]
        lettered = _LETTERED.match(candidate) if with_letters else None
        index = known.first.get(_bare(candidate[lettered.end() :])) if lettered else None
        if lettered and index is not None and known.of_letter(lettered["letter"]) == index:
            return index
    said = _stated(said)
    mentions = _texts(said, known)
    if with_letters:
        letters = list(_letters(said, known))
        if letters and known.are_letters:
            return None
        mentions += [letter for letter in letters if not any(_inside(letter, text) for text in mentions)]
    denied = {mention.index for mention in mentions if _is_denied(said, mention)}
    named = {mention.index for mention in mentions if not _is_denied(said, mention)}
    return named.pop() if len(named) == 1 and not named & (denied | {-1}) else None


@lru_cache(maxsize=256)
def _read(choices: tuple[str, ...]) -> _Choices:
    texts = [_plain(text) for text in _without_letters(choices)]
    first = {_bare(text): index for index, text in reversed(list(enumerate(texts))) if text}
    if not first:
        raise PalError(f"an answer cannot be parsed: none of its {len(texts)} choices has a text")
    are_letters = any(re.fullmatch("[a-z]", text) and index != _index_of(text) for text, index in first.items())
    return _Choices(
        tuple(first.get(_bare(text), index) for index, text in enumerate(texts)),
        first,
        tuple((pattern, first[text]) for text, pattern in _patterns(first)),
        are_letters,
    )


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_SAME)
    return "\n".join(filter(None, (" ".join(line.split()) for line in folded.splitlines())))


def _bare(text: str) -> str:
    """Without quotes around it and a final . ! or ?; a text of nothing else stays."""
    return " ".join(text.split()).strip("\"'").rstrip(".!?").strip("\"' ") or text


def _without_letters(choices: Sequence[str]) -> list[str]:
    """The texts without the letters in front, where every choice has its own."""
    found = [re.match(r"\s*[(\[]?([A-Z]{1,2})[)\].:]+\s+(?=\S)", choice) for choice in choices]
    if all(mark is not None and _index_of(mark[1].lower()) == index for index, mark in enumerate(found)):
        return [choice[mark.end() :] for choice, mark in zip(choices, found, strict=True) if mark is not None]
    return list(choices)


def _stated(said: str) -> str:
    """What follows the last "answer is" that is not denied; all of it where nothing follows."""
    ends = [found.end() for found in _STATED.finditer(said) if not _denied_before(said, found.start())]
    return next((said[end:].strip() for end in reversed(ends) if said[end:].strip(" .:")), said)


def _letters(said: str, known: _Choices) -> Iterator[_Mention]:
    for found in (found for pattern in _MARKS for found in pattern.finditer(said)):
        index = known.of_letter(found["letter"])
        if index is not None:
            yield _Mention(*found.span("letter"), index)


def _index_of(letter: str) -> int:
    """What `letter_of` makes the letter from."""
    return int(letter, 36) - 10 if len(letter) == 1 else (int(letter[0], 36) - 9) * 26 + int(letter[1], 36) - 10


def _patterns(texts: Iterable[str]) -> Iterator[tuple[str, re.Pattern[str]]]:
    """Each text with what finds it in an answer."""
    words = {text: tuple(re.findall(r"\w+", text)) for text in texts}
    contents = {text: tuple(re.findall(r"\w+", _ARTICLE.sub(" ", text))) for text in words}
    letters = [text for text in words if re.match(r"[b-z]\b", text)]
    for text, shown in contents.items():
        others = [contents[other] for other in words if other != text]
        if not shown or shown in others or _SIGN.search(text):
            pattern = r"\s+".join(map(re.escape, text.split()))
        else:
            # "B minor" must not name "A minor"; nor "minor", where there is "C minor" too.
            article_counts = _ARTICLE.match(text) and (letters or any(other[-len(shown) :] == shown for other in others))
            pattern = r"\W+(?:(?:a|an|the)\W+)*".join(map(re.escape, words[text] if article_counts else shown))
        if text[0].isdigit():
            pattern = r"(?<!\A-)(?<!\s-)" + pattern
        yield text, re.compile(rf"(?<!\w)(?<!\d[.,:/]){pattern}(?![\w#♯♭])(?![.,:/]\d)")


def _texts(said: str, known: _Choices) -> list[_Mention]:
    found = [_Mention(*match.span(), index) for pattern, index in known.patterns for match in pattern.finditer(said)]
    return [mention for mention in found if not any(_inside(mention, other) for other in found)]


def _inside(inner: _Mention, outer: _Mention) -> bool:
    """Whether the one is a part of the other, and a shorter one."""
    return outer.start <= inner.start and inner.end <= outer.end and inner.end - inner.start < outer.end - outer.start


def _denied_before(said: str, position: int) -> bool:
    clause = max((found.end() for found in _CLAUSE_END.finditer(said) if found.end() <= position), default=0)
    return _DENIAL.search(said, clause, position) is not None


def _is_denied(said: str, mention: _Mention) -> bool:
    return _denied_before(said, mention.start) or _DENIED_AFTER.match(said, mention.end) is not None
