"""CIDEr-D and BLEU of captions, in plain Python.

Captions are tokenised first, like the Penn Treebank: lower case; words at spaces and before punctuation; "don't" -> "do n't",
"it's" -> "it 's", "cannot" -> "can not"; hyphenated words, times and decimal numbers whole; punctuation dropped; brackets as
"-lrb-". The published tool is Stanford's PTBTokenizer in Java, with the punctuation list of coco-caption. This one differs from
it where a full stop might belong to an abbreviation (a short list here, large rules there), at URLs, emoticons and e-mail
addresses, and for non-English contractions; dev/LOG.md has the share of captions that differ. Where a number must equal the
tool's to the last digit, use `pal_audio.evaluation.external`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.extras import same_length

NGram = tuple[str, ...]

SIGMA = 6.0
MAX_N = 4

_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "…": " ", "–": " ", "—": " "})
_ABBREVIATIONS = "mr mrs ms dr prof jr sr st vs etc"
_TOKEN = re.compile(
    rf"""
    (?:[a-z]\.){{2,}}                       # u.s., a.m.
    | \b(?:{_ABBREVIATIONS.replace(" ", "|")})\.
    | (?<!\w)[+-]?\d+(?:[.,:]\d+)+(?!\w)    # 1,000  3.5  10:30
    | (?<!\w)[+-]\d+(?!\w)
    | [^\W_]+(?:['./-][^\W_]+)*             # words, high-pitched, o'clock, and/or
    | '(?:s|m|d|re|ve|ll|em)\b
    | [?!]{{2,}}
    | [()\[\]{{}}]
    | [^\s\w.?!,:;"'`-]                     # & % $ #
    | _
    """,
    re.VERBOSE,
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}
_CONTRACTION = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))")


def tokenise(caption: str) -> list[str]:
    """A caption's words, after the rules at the top of this module."""
    return list(_pieces(caption.lower().translate(_STRAIGHT)))


def _pieces(text: str) -> Iterator[str]:
    for token in _TOKEN.findall(text):
        parts = _CONTRACTION.fullmatch(token)
        if parts:
            yield from parts.groups()
        else:
            yield from _SPLIT.get(token, _BRACKETS.get(token, token)).split()


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """CIDEr-D, what audio-captioning papers call CIDEr.

    For n = 1 to 4, the cosine of TF-IDF vectors of n-grams, the candidate's weights clipped at the reference's, times a
    Gaussian of the difference in length; the mean over n and over an item's references, times 10. Document frequencies are
    those of the references given, one document an item, so score a whole test set at once and never batches of it. With one
    item every IDF is zero.

    Args:
        candidates: one caption an item.
        references: at least one caption an item.

    Returns:
        The mean over items and the items' scores, each 0 to 10. (Some papers print a tenth of it, some ten times as much.)

    Raises:
        PalError: The lists do not fit, fewer than two items, or an item without a reference.

    Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", sections 4 and 5 (CIDEr-D); equal to
    coco-caption's scorer on the same tokens.
    """
    tokens, reference_tokens = _tokenised(candidates, references)
    if len(tokens) < 2:
        raise PalError("CIDEr-D takes its word weights from the references of the whole set: give at least two items")
    counts = [_ngrams(words, MAX_N) for words in tokens]
    reference_counts = [[_ngrams(words, MAX_N) for words in item] for item in reference_tokens]
    document_frequency = Counter(chain.from_iterable(set(chain.from_iterable(item)) for item in reference_counts))

    def weights(counter: Counter[NGram]) -> list[dict[NGram, float]]:
        """TF-IDF vectors, one for each n."""
        vectors: list[dict[NGram, float]] = [{} for _ in range(MAX_N)]
        for ngram, count in counter.items():
            vectors[len(ngram) - 1][ngram] = count * math.log(len(tokens) / max(1, document_frequency[ngram]))
        return vectors

    def item_score(index: int) -> float:
        mine = weights(counts[index])
        similarities = [
            _length_penalty(tokens[index], words) * sum(map(_clipped_cosine, mine, weights(counter))) / MAX_N
            for words, counter in zip(reference_tokens[index], reference_counts[index], strict=True)
        ]
        return 10 * sum(similarities) / len(similarities)

    per_item = [item_score(index) for index in range(len(tokens))]
    return sum(per_item) / len(per_item), per_item


def _clipped_cosine(candidate: dict[NGram, float], reference: dict[NGram, float]) -> float:
    norms = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    if not norms:
        return 0.0
    shared = candidate.keys() & reference.keys()
    return math.fsum(min(candidate[ngram], reference[ngram]) * reference[ngram] for ngram in shared) / norms


def _length_penalty(candidate: Sequence[str], reference: Sequence[str]) -> float:
    return math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * SIGMA**2))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4) -> dict[str, float]:
    """Corpus BLEU without smoothing.

    Args:
        candidates: one caption an item.
        references: at least one caption an item.
        max_n: the longest n-gram.

    Returns:
        "bleu_1" to "bleu_<max_n>", each 0 to 1: the geometric mean of the clipped n-gram precisions up to n, times the brevity
        penalty against the reference nearest in length (the shorter of two as near).

    Raises:
        PalError: The lists do not fit, an item without a reference, or `max_n` below 1.

    Source: Papineni et al., "BLEU", section 2; captions tokenised as for CIDEr-D.
    """
    if max_n < 1:
        raise PalError(f"BLEU needs n-grams of at least one word, got max_n={max_n}")
    tokens, reference_tokens = _tokenised(candidates, references)
    matched, proposed = [0] * max_n, [0] * max_n
    candidate_length = reference_length = 0
    for words, item in zip(tokens, reference_tokens, strict=True):
        candidate_length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in item)[1]
        most: Counter[NGram] = Counter()
        for other in item:
            most |= _ngrams(other, max_n)
        mine = _ngrams(words, max_n)
        for ngram, count in (mine & most).items():
            matched[len(ngram) - 1] += count
        for ngram, count in mine.items():
            proposed[len(ngram) - 1] += count
    brevity = math.exp(min(0.0, 1 - reference_length / candidate_length)) if candidate_length else 0.0
    precisions = [hits / total if total else 0.0 for hits, total in zip(matched, proposed, strict=True)]
    return {f"bleu_{n}": brevity * math.prod(precisions[:n]) ** (1 / n) for n in range(1, max_n + 1)}


def _ngrams(words: Sequence[str], max_n: int) -> Counter[NGram]:
    return Counter(tuple(words[start : start + n]) for n in range(1, max_n + 1) for start in range(len(words) - n + 1))


def _tokenised(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    same_length(len(candidates), len(references), ("candidates", "lists of references"))
    for index, item in enumerate(references):
        if isinstance(item, str) or not item:
            raise PalError(f"item {index} has {'a string' if isinstance(item, str) else 'no reference'}: give a list of captions")
    return [tokenise(text) for text in candidates], [[tokenise(text) for text in item] for item in references]
