"""What a model would be trained to say: the prompt and the supervised tokens of one example."""

import re
from dataclasses import dataclass
from typing import Any

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.model import PalProcessor
from pal_audio.model.parts import PartsProcessor


@dataclass(frozen=True)
class Preview:
    """Tokens of an example, the text before the first that has a label, and the texts of those that have one."""

    id: str
    num_tokens: int
    prompt: str
    supervised: list[str]


def preview(processor: PalProcessor, example: Example) -> Preview:
    """Collate an example as training does and read its labels."""
    return preview_inputs(processor, example.id, Collator(processor, keep_bytes=0).training_batch([example]))


def preview_inputs(processor: PalProcessor | PartsProcessor, example_id: str, inputs: dict[str, Any]) -> Preview:
    """Read the labels of an example that was collated alone.

    Args:
        processor: its tokenizer gives the texts.
        example_id: of the example.
        inputs: `input_ids`, `attention_mask` and `labels`, (1, L).
    """
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    ids, labels = inputs["input_ids"][0], inputs["labels"][0]
    places = (labels >= 0).nonzero().flatten().tolist()
    prompt = tokenizer.decode(ids[: places[0] if places else len(ids)].tolist())
    if isinstance(processor, PalProcessor):
        slot = processor.audio_slot_token
        prompt = re.sub(f"(?:{re.escape(slot)}){{2,}}", lambda run: f"{slot} x {len(run[0]) // len(slot)}", prompt)
    supervised = [tokenizer.decode([token]) for token in labels[places].tolist()]
    return Preview(example_id, int(inputs["attention_mask"][0].sum()), prompt, supervised)
