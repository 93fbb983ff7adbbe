"""How sure a model is of a greedy answer, and below what its word is worth little.

    answer ── product of its tokens' probabilities ──► probability ── calibration of the model ──► a warning, or none

A calibration is part of a model's configuration, so it is saved, exported and shipped with the weights. Source: our choice.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import Field, TypeAdapter

from pal_audio.config import StrictConfig, parse_config
from pal_audio.errors import PalError

FEWEST_ANSWERS = 20


class Calibration(StrictConfig):
    """What the probability of an answer said about it, on held-out questions.

    Attributes:
        threshold: below it, at most half of the answers were right; 0: there is no such place.
        right_below, right_above: share of right answers on either side; None: there were none.
        num_answers: how many were looked at.
        measured_on: what they were about.
    """

    threshold: float = Field(ge=0, le=1)
    right_below: float | None = Field(None, ge=0, le=1)
    right_above: float | None = Field(None, ge=0, le=1)
    num_answers: int = Field(ge=1)
    measured_on: str


_type: TypeAdapter[Calibration] = TypeAdapter(Calibration)


def calibration_of(config: Any) -> Calibration | None:
    """The calibration in a `PalConfig`, validated, or None.

    Raises:
        PalError: it is not one.
    """
    value = getattr(config, "calibration", None)
    return None if value is None else parse_config(_type, value, "calibration")


def calibrate(probabilities: Sequence[float], right: Sequence[bool], measured_on: str) -> Calibration:
    """The calibration that held-out answers give.

    Args:
        probabilities: of the answers.
        right: whether each is right.
        measured_on: what they were about, in a few words.

    Raises:
        PalError: there are fewer than `FEWEST_ANSWERS`, or not as many of one as of the other.
    """
    if len(probabilities) != len(right) or len(right) < FEWEST_ANSWERS:
        raise PalError(f"calibration: {len(probabilities)} probabilities of {len(right)} answers; give {FEWEST_ANSWERS} or more")
    order = sorted(zip(probabilities, right, strict=True))
    threshold, num_right = 0.0, 0
    for number, (_, is_right) in enumerate(order, start=1):
        num_right += is_right
        is_last_of_its_kind = number == len(order) or order[number][0] > order[number - 1][0]
        if is_last_of_its_kind and 2 * num_right <= number:
            threshold = 1.0 if number == len(order) else order[number][0]
    below = [is_right for probability, is_right in order if probability < threshold]
    above = [is_right for probability, is_right in order if probability >= threshold]
    shares = [round(sum(side) / len(side), 4) if side else None for side in (below, above)]
    return Calibration(
        threshold=threshold, right_below=shares[0], right_above=shares[1], num_answers=len(order), measured_on=measured_on
    )


def probability_of(output: Any, row: int = 0, ends: Collection[int] = ()) -> float:
    """Probability of a generated answer: that of all its tokens together, the end included if it came to one.

    Args:
        output: of `generate(..., return_dict_in_generate=True, output_logits=True)`, without beams.
        row: which row's.
        ends: tokens that end an answer; what other rows of a batch make it go on with behind one does not count.
    """
    tokens = output.sequences[row, -len(output.logits) :].tolist()
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    steps = zip(output.logits[:length], tokens[:length], strict=True)
    return math.exp(sum(float(logits[row].float().log_softmax(-1)[token]) for logits, token in steps))


def warning_about(answer: str, probability: float | None, calibration: Calibration | None) -> str | None:
    """A line for whoever asked, or None where there is nothing to warn of."""
    if not answer.strip():
        return "the model answered nothing: it may never have learnt from such sound, or from so long a clip"
    if calibration is None or probability is None or probability >= calibration.threshold:
        return None
    share = "none" if calibration.right_below is None else f"{calibration.right_below:.0%}"
    return (
        f"the model is not sure of this answer (probability {probability:.2f}): of those below {calibration.threshold:.2f}, "
        f"{share} were right on {calibration.measured_on}"
    )
