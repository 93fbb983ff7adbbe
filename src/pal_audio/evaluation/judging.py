"""One task's answers by one method under one condition -> a number for each item, and the scores that they make.

| kind | method | right is | headline |
| --- | --- | --- | --- |
| classify | rank | the label of highest score is the truth | accuracy |
| classify | generate | the answer names the truth and no other label (`parsers.parse_label`) | accuracy |
| classify | match | the label nearest to the answer is the truth (`metrics.matching`) | accuracy |
| tags | rank, match | each label's score orders the clips | mAP |
| choices | rank | the choice of highest score is the truth | accuracy |
| choices | generate | the official string rule, on the choice that `parsers.bare_choice` reads | accuracy |
| exact | generate | the same words, case and punctuation aside | accuracy |
| caption | generate | | CIDEr-D |
| transcribe | generate | | WER |

An item without an answer counts as wrong, as an empty caption or transcript, or as a clip below all others: it never leaves the
denominator. An item whose truth is not known is not judged and is counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item, Method
from pal_audio.evaluation.metrics import captions, choices, classification, matching, statistics, transcription
from pal_audio.evaluation.metrics.extras import load
from pal_audio.evaluation.parsers import bare_choice, parse_choice, parse_label
from pal_audio.evaluation.store import Answer, TaskInfo
from pal_audio.evaluation.tasks import TASKS
from pal_audio.training.scores import normalise

RESAMPLES = 2000
MAP_RESAMPLES = 100  # mAP is slow to compute
PARSERS: dict[tuple[str, Method], str] = {
    ("classify", "rank"): "the label of highest mean log-probability per token, end of turn included",
    ("classify", "generate"): "parsers.parse_label: the one label that the answer names",
    ("classify", "match"): "metrics.matching: the nearest label, after LTU",
    ("tags", "rank"): "each label's mean log-probability per token, end of turn included",
    ("tags", "match"): "metrics.matching: each label's cosine similarity, after LTU",
    ("choices", "rank"): "the choice of highest mean log-probability per token, end of turn included",
    ("choices", "generate"): "the official string rule of MMAU and MMAR on the text of the choice that parsers.bare_choice reads",
    ("exact", "generate"): "the same words as the truth, case and punctuation aside",
    ("caption", "generate"): "as written",
    ("transcribe", "generate"): "as written, both sides normalised",
}
METHODS_OF: dict[str, tuple[Method, ...]] = {}
for _kind, _method in PARSERS:
    METHODS_OF[_kind] = (*METHODS_OF.get(_kind, ()), _method)


@dataclass
class Judged:
    """A task's answers, judged.

    Attributes:
        headline: name of the score that stands for all.
        score: its value.
        values, statistic: (N,) or (N, K) by item, and what makes the score of them; what intervals resample.
        higher_is_better: False for error rates.
        others: further scores by name.
        num_unparsable: answers that name nothing; items without an answer are not among them.
        predictions: what was read out of each answer.
        resamples: of the interval.
        paired, paired_name: by item, what two conditions or models are compared by, where that is not `values`.
    """

    headline: str
    score: float
    values: NDArray[np.float64]
    statistic: Callable[[NDArray[np.float64]], Any] = statistics.mean
    higher_is_better: bool = True
    others: dict[str, float] = field(default_factory=dict)
    num_unparsable: int = 0
    predictions: list[str | None] = field(default_factory=list)
    resamples: int = RESAMPLES
    paired: NDArray[np.float64] | None = None
    paired_name: str = ""


def judge(
    info: TaskInfo, method: Method, items: Sequence[Item], answers: Sequence[Answer], embedder: matching.TextEmbedder | None
) -> Judged:
    """Judge a task's answers by one method under one condition.

    Args:
        items: those whose truth is known.
        answers: theirs, in the same order.
        embedder: for `match`.

    Raises:
        PalError: a package of the extra `eval` is missing.
    """
    if info.kind == "tags":
        return _tags(method, items, answers, embedder)
    if info.kind == "caption":
        return _captions(items, answers)
    if info.kind == "transcribe":
        return _transcripts(info, items, answers)
    texts = [answer.answers.get(method, "") for answer in answers]
    if info.kind == "classify":
        return _classes(items, answers, _labels(method, items, answers, texts, embedder))
    if info.kind == "choices":
        return _choices(method, items, answers, texts)
    said = [normalise(text) or None for text in texts]
    right = [text in [normalise(truth) for truth in item.truth] for item, text in zip(items, said, strict=True)]
    return _shares(right, said, answers)


def check_extras(infos: Sequence[TaskInfo]) -> None:
    """That everything needed to score these tasks is installed, before any model is asked.

    Raises:
        PalError: a package is missing.
    """
    kinds = {info.kind for info in infos}
    if kinds & {"classify", "tags"}:
        load("sklearn.metrics", "F1 and mean average precision")
    for info in infos:
        if info.kind == "transcribe":
            transcription.word_errors(["one"], ["one"], normaliser_of(info))


def normaliser_of(info: TaskInfo) -> Any:
    """Name of the normaliser of a task's transcripts."""
    return TASKS[info.name].normaliser


def _shares(right: Sequence[bool], predictions: list[str | None], answers: Sequence[Answer]) -> Judged:
    values = np.array(right, dtype=np.float64)
    num_unparsable = sum(prediction is None and not answer.fault for prediction, answer in zip(predictions, answers, strict=True))
    return Judged("accuracy", classification.accuracy(right), values, num_unparsable=num_unparsable, predictions=predictions)


def _labels(
    method: Method,
    items: Sequence[Item],
    answers: Sequence[Answer],
    texts: Sequence[str],
    embedder: matching.TextEmbedder | None,
) -> list[str | None]:
    """The label that each answer is read as."""
    labels = items[0].choices  # those of the whole set, the same for each of its items
    if method == "rank":
        return [_best(item, answer) for item, answer in zip(items, answers, strict=True)]
    if method == "match":
        best = matching.best_labels(matching.label_scores(texts, labels, _needed(embedder)))
    else:
        best = [parse_label(text, labels) for text in texts]
    return [None if index is None else labels[index] for index in best]


def _classes(items: Sequence[Item], answers: Sequence[Answer], predictions: list[str | None]) -> Judged:
    truths = [item.truth[0] for item in items]
    judged = _shares([truth == prediction for truth, prediction in zip(truths, predictions, strict=True)], predictions, answers)
    judged.others = {
        "macro_f1": classification.macro_f1(truths, predictions),
        "micro_f1": classification.micro_f1(truths, predictions),
    }
    return judged


def _choices(method: Method, items: Sequence[Item], answers: Sequence[Answer], texts: Sequence[str]) -> Judged:
    if method == "rank":
        predictions = [_best(item, answer) for item, answer in zip(items, answers, strict=True)]
        return _shares(
            [prediction == item.truth[0] for prediction, item in zip(predictions, items, strict=True)], predictions, answers
        )
    right, as_written = [], []
    for item, text in zip(items, texts, strict=True):
        right.append(choices.string_match(bare_choice(text, item.choices), item.truth[0], item.choices))
        as_written.append(choices.string_match(text, item.truth[0], item.choices))
    indices = [parse_choice(text, item.choices) for item, text in zip(items, texts, strict=True)]
    read = [None if index is None else item.choices[index] for index, item in zip(indices, items, strict=True)]
    judged = _shares(right, read, answers)
    judged.others = {"accuracy_as_written": classification.accuracy(as_written)}
    return judged


def _tags(method: Method, items: Sequence[Item], answers: Sequence[Answer], embedder: matching.TextEmbedder | None) -> Judged:
    labels = items[0].choices
    if method == "rank":
        scores_NC = np.array([answer.scores or [np.nan] * len(labels) for answer in answers])
        missing = np.isnan(scores_NC).any(1)
        scores_NC[missing] = (scores_NC[~missing].min() if (~missing).any() else 0.0) - 1.0
        num_unparsable = 0
    else:
        texts = [answer.answers.get(method, "") for answer in answers]
        scores_NC = matching.label_scores(texts, labels, _needed(embedder))
        num_unparsable = _num_empty(texts, answers)
    truth_NC = np.array([[label in item.truth for label in labels] for item in items], dtype=np.float64)
    result = classification.mean_average_precision(truth_NC, scores_NC)
    num = len(labels)
    ranking = load("sklearn.metrics", "the order of labels").label_ranking_average_precision_score
    per_item = np.array([ranking(truth[None], scores[None]) for truth, scores in zip(truth_NC, scores_NC, strict=True)])
    return Judged(
        "mAP",
        result.mean,
        np.concatenate([truth_NC, scores_NC], axis=1),
        lambda values: classification.mean_average_precision(values[:, :num], values[:, num:]).mean,
        others={"label_ranking_ap": float(per_item.mean()), "classes_without_a_clip": result.num_undefined},
        num_unparsable=num_unparsable,
        resamples=MAP_RESAMPLES,
        paired=per_item,
        paired_name="label_ranking_ap",
    )


def _captions(items: Sequence[Item], answers: Sequence[Answer]) -> Judged:
    texts = [answer.answers.get("generate", "") for answer in answers]
    references = [item.truth for item in items]
    corpus, per_item = captions.cider_d(texts, references)
    judged = Judged("cider_d", corpus, np.array(per_item), others=captions.bleu(texts, references))
    judged.num_unparsable = _num_empty(texts, answers)
    return judged


def _transcripts(info: TaskInfo, items: Sequence[Item], answers: Sequence[Answer]) -> Judged:
    texts = [answer.answers.get("generate", "") for answer in answers]
    references = [item.truth[0] for item in items]
    words = transcription.word_errors(references, texts, normaliser_of(info))
    characters = transcription.cer(references, texts, normaliser_of(info))
    values = np.array([[item.num_errors, item.num_words] for item in words.per_item], dtype=np.float64)
    others = {"cer": characters.wer, "empty_references": words.num_dropped}
    judged = Judged("wer", words.wer, values, statistics.ratio_of_sums, higher_is_better=False, others=others)
    judged.num_unparsable = _num_empty(texts, answers)
    return judged


def _num_empty(texts: Sequence[str], answers: Sequence[Answer]) -> int:
    return sum(not text.strip() and not answer.fault for text, answer in zip(texts, answers, strict=True))


def _best(item: Item, answer: Answer) -> str | None:
    """The choice of highest score; of equal ones the first."""
    return item.choices[int(np.argmax(answer.scores))] if answer.scores else None


def _needed(embedder: matching.TextEmbedder | None) -> matching.TextEmbedder:
    if embedder is None:
        raise PalError("labels cannot be matched without a text embedder")
    return embedder
