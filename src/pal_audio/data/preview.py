"""What a model would be trained to say: the supervised tokens of one example."""

from dataclasses import dataclass

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.model import PalProcessor


@dataclass(frozen=True)
class Preview:
    """Tokens of an example, and the texts of those with a label."""

    id: str
    num_tokens: int
    supervised: list[str]


def preview(processor: PalProcessor, example: Example) -> Preview:
    """Collate an example as training does and read its labels."""
    batch = Collator(processor, keep_bytes=0).training_batch([example])
    labels = batch["labels"][0]
    supervised = [processor.tokenizer.decode([token]) for token in labels[labels >= 0].tolist()]
    return Preview(example.id, int(batch["attention_mask"][0].sum()), supervised)
