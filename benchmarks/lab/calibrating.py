"""What the probability of an answer is worth: the best arm's first run is asked about recordings that it has never heard."""

import json
from typing import Any

import torch
from benchmarks.lab.flow import Flow
from benchmarks.lab.questions import read_json

from pal_audio.commands.models import pick_device
from pal_audio.data.collation import Collator
from pal_audio.data.manifest import read_manifest, write_text
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.model.confidence import calibrate, probability_of
from pal_audio.model.generation import end_tokens
from pal_audio.training.device import to_device
from pal_audio.training.scores import normalise

MOST = 300
_MAX_NEW_TOKENS = 32
_TOGETHER = 25


def calibration(flow: Flow) -> dict[str, Any]:
    """The calibration that the bundled model is shipped with, as its configuration holds it.

    Questions with an exact answer, evenly spaced over the tests, on the device of the lab's evaluations. It is that of the same
    recipe trained without the development recordings. OUT/calibration.json keeps it for the next model of that arm.

    Raises:
        PalError: that run is not there any more, or there are too few questions.
    """
    best, file = flow.best(), flow.out / "calibration.json"
    if file.is_file() and (told := read_json(file))["arm"] == best.name:
        return dict(told["calibration"])
    run = flow.run_folder(best.name, flow.factor_of(best), flow.seeds[0]) / "final"
    if not run.is_dir():
        raise PalError(f"{run}: no such folder; the run of {best.name} that gives the calibration is gone, delete its result")
    device = torch.device(pick_device(flow.device))
    model, processor = load(run, device)
    questions = read_manifest(flow.out / "tests" / "exact.jsonl", flow.roots)
    num = min(MOST, len(questions))
    asked = [questions[number * len(questions) // num] for number in range(num)]
    collator = Collator(processor)
    ends = end_tokens(model.generation_config.eos_token_id)
    options: dict[str, Any] = {"max_new_tokens": _MAX_NEW_TOKENS, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    probabilities, right = [], []
    for start in range(0, num, _TOGETHER):
        examples = asked[start : start + _TOGETHER]
        inputs: dict[str, Any] = to_device(collator.prompt_batch(examples), device)
        with torch.inference_mode():
            output = model.generate(**inputs, **options)
        answers = processor.tokenizer.batch_decode(output.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        probabilities += [probability_of(output, row, ends) for row in range(len(examples))]
        right += [normalise(text) == normalise(example.answer or "") for text, example in zip(answers, examples, strict=True)]
    found = calibrate(probabilities, right, "the lab's held-out questions").model_dump()
    write_text(file, json.dumps({"arm": best.name, "calibration": found}) + "\n")
    return found
