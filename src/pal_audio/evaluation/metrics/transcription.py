"""Word and character error rates of transcripts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.extras import load, same_length

Normaliser = Literal["english", "basic", "none"]


@dataclass(frozen=True)
class ItemErrors:
    """One item's share: `num_errors` substitutions, deletions and insertions against `num_words` of its reference.

    Both are 0 for an item that was dropped. For `cer` the words are characters.
    """

    num_errors: int
    num_words: int


@dataclass(frozen=True)
class WerResult:
    """An error rate over a set.

    Args:
        wer: num_errors / num_words, 0 or more; above 1 where more was inserted than there is. Times 100 in papers.
        num_errors: substitutions, deletions and insertions.
        num_words: of the references. For `cer`, characters.
        per_item: in the order given, dropped items included, so that it can be resampled (`statistics.ratio_of_sums`).
        num_dropped: items whose reference is empty after normalisation.
    """

    wer: float
    num_errors: int
    num_words: int
    per_item: tuple[ItemErrors, ...]
    num_dropped: int


def word_errors(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser = "english") -> WerResult:
    """Word error rate: word edits over reference words, summed over the set.

    Both sides are normalised first. Then items whose reference is empty are dropped and counted; an empty hypothesis is an
    answer, all of whose words are missing.

    Args:
        references: the true transcripts.
        hypotheses: the answers, one for each.
        normaliser: "english" is Whisper's for English (numbers, contractions, spelling), "basic" its one for other languages
            (lower case, no brackets and symbols), "none" changes nothing but runs of spaces.

    Raises:
        PalError: The lists do not fit, no reference holds a word, an unknown normaliser, or the extra `eval` is missing.

    Source: jiwer; Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C.
    """
    return _errors(references, hypotheses, normaliser, "process_words")


def cer(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser = "english") -> WerResult:
    """Character error rate, otherwise as `word_errors`. The single spaces between words are characters too, as in jiwer."""
    return _errors(references, hypotheses, normaliser, "process_characters")


def normalise(text: str, normaliser: Normaliser) -> str:
    """A transcript in the form that is compared.

    Raises:
        PalError: An unknown normaliser, or the extra `eval` is missing.
    """
    if normaliser not in get_args(Normaliser):
        raise PalError(f"unknown normaliser {normaliser!r}: choose one of {', '.join(get_args(Normaliser))}")
    return " ".join((text if normaliser == "none" else _whisper(normaliser)(text)).split())


@cache
def _whisper(normaliser: str) -> Callable[[str], str]:
    """Whisper's normaliser out of transformers. The English one takes its spellings from the package whisper-normalizer."""
    module: Any = load("transformers.models.whisper.english_normalizer", "Whisper's normaliser")
    if normaliser == "basic":
        basic: Callable[[str], str] = module.BasicTextNormalizer()
        return basic
    load("whisper_normalizer", "Whisper's English normaliser")
    spellings = json.loads((files("whisper_normalizer") / "normalizers" / "english.json").read_text(encoding="utf-8"))
    english: Callable[[str], str] = module.EnglishTextNormalizer(spellings)
    return english


def _errors(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser, process: str) -> WerResult:
    same_length(len(references), len(hypotheses), ("references", "hypotheses"))
    jiwer = load("jiwer", "an error rate")
    pairs = [
        (normalise(reference, normaliser), normalise(answer, normaliser))
        for reference, answer in zip(references, hypotheses, strict=True)
    ]
    kept = [pair for pair in pairs if pair[0]]
    if not kept:
        raise PalError(
            f"an error rate needs references with words: all {len(pairs)} are empty after the {normaliser!r} normaliser"
        )
    counts = iter([_item_errors(getattr(jiwer, process)(*pair)) for pair in kept])
    per_item = tuple(next(counts) if reference else ItemErrors(0, 0) for reference, _ in pairs)
    num_errors, num_words = sum(item.num_errors for item in per_item), sum(item.num_words for item in per_item)
    return WerResult(num_errors / num_words, num_errors, num_words, per_item, len(pairs) - len(kept))


def _item_errors(output: Any) -> ItemErrors:
    changed = output.substitutions + output.deletions
    return ItemErrors(changed + output.insertions, output.hits + changed)
