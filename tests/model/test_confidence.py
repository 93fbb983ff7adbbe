"""Probabilities of answers, and what a model's calibration says of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.model import PalForConditionalGeneration
from pal_audio.model.confidence import Calibration, calibrate, calibration_of, probability_of, warning_about
from pal_audio.model.conversation import Conversation
from tests.tiny import RATE_HZ, batch, message, noise, tiny_model


def test_the_probability_is_that_of_all_tokens_by_a_forward_over_them() -> None:
    model, processor = tiny_model("llama", "pal")
    inputs = batch(processor, [message(noise(0.4, 1))])
    output = model.generate(
        **inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    start, ids = inputs["input_ids"].shape[1], output.sequences
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(ids, attention_mask=torch.ones_like(ids), **rest).logits[0, start - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, ids[0, start:, None]).sum().exp()
    assert probability_of(output) == pytest.approx(float(expected), rel=1e-4)
    assert 0 < probability_of(output) < 1


def test_a_row_of_a_batch_is_as_sure_as_alone_where_others_go_on() -> None:
    model, processor = tiny_model("llama", "pal")
    prompts = [
        message(noise(seconds, seed), question="what is heard?" if seed else "?") for seed, seconds in enumerate((0.4, 0.9, 0.6))
    ]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    free = model.generate(**batch(processor, prompts), **options, eos_token_id=None)
    end = int(free.sequences[1, -4])  # the second row ends at its third token, or before
    together = model.generate(**batch(processor, prompts), **options, eos_token_id=end, pad_token_id=0)
    alone = [model.generate(**batch(processor, [prompt]), **options, eos_token_id=end, pad_token_id=0) for prompt in prompts]
    assert len({len(output.logits) for output in alone}) > 1, "rows of several lengths"
    found = [probability_of(together, row, ends=[end]) for row in range(3)]
    assert found == pytest.approx([probability_of(output, ends=[end]) for output in alone], rel=1e-3)
    assert probability_of(together, 1) < 0.9 * found[1], "what stands behind the end is no part of the answer"


def test_a_conversation_knows_it_too() -> None:
    model, processor = tiny_model("llama", "lal")
    talk = Conversation(model, processor)
    talk.add(noise(0.4, 1), RATE_HZ)
    talk.ask("what?", max_new_tokens=3)
    assert talk.probability is None
    talk.ask("what?", max_new_tokens=3, with_probability=True)
    assert talk.probability is not None
    assert 0 < talk.probability < 1


def ladder(num: int, right_from: int) -> tuple[list[float], list[bool]]:
    """Probabilities 1/num, 2/num, ...; the answers from number `right_from` on are right."""
    return [(number + 1) / num for number in range(num)], [number >= right_from for number in range(num)]


@pytest.mark.parametrize(
    ("right_from", "threshold", "below", "above"),
    [
        (0, 0.0, None, 1.0),  # all right: nothing to warn of
        (10, 21 / 40, 0.5, 1.0),  # 10 wrong, then as many right: the twenty below are right half of the time
        (30, 1.0, 9 / 39, 1.0),  # mostly wrong: every probability below 1 is worth a warning
    ],
)
def test_the_threshold_is_the_highest_below_which_half_are_wrong(
    right_from: int, threshold: float, below: float | None, above: float | None
) -> None:
    found = calibrate(*ladder(40, right_from), "a ladder")
    assert found.threshold == pytest.approx(threshold)
    assert found.right_below == (None if below is None else pytest.approx(below, abs=1e-4))
    assert found.right_above == above
    assert found.num_answers == 40


def test_equal_probabilities_are_on_one_side() -> None:
    found = calibrate([0.5] * 20 + [0.9] * 20, [False] * 12 + [True] * 28, "two heaps")
    assert (found.threshold, found.right_below) == (0.9, 0.4)


def test_too_few_answers_give_no_calibration() -> None:
    with pytest.raises(PalError, match="give 20 or more"):
        calibrate([0.5] * 19, [True] * 19, "few")
    with pytest.raises(PalError, match="20 probabilities of 21 answers"):
        calibrate([0.5] * 20, [True] * 21, "uneven")


def test_a_model_keeps_its_calibration_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    model, _ = tiny_model("llama", "lal")
    calibration = calibrate(*ladder(40, 10), "a ladder")
    model.config.calibration = calibration.model_dump()
    model.save_pretrained(tmp_path)
    again: Any = PalForConditionalGeneration.from_pretrained(tmp_path)
    assert calibration_of(again.config) == calibration
    again.config.calibration = {"threshold": 2}
    with pytest.raises(PalError, match="calibration"):
        calibration_of(again.config)


def test_warnings() -> None:
    calibration = Calibration(threshold=0.4, right_below=0.25, right_above=0.9, num_answers=30, measured_on="a test")
    assert warning_about("a dog", 0.4, calibration) is None
    assert warning_about("a dog", 0.1, None) is None
    for known in (calibration, None):
        assert "the model answered nothing" in str(warning_about(" ", 0.99, known))
    assert "probability 0.10): of those below 0.40, 25% were right on a test" in str(warning_about("a dog", 0.1, calibration))
