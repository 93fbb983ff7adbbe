"""What objectives of encoders share: one encoder learns by a head, which the stage's checkpoints hold and nothing else.

Shapes: C clips, W encoder windows, T encoder frames, D width, V outputs of the head.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.data.texts import Document
from pal_audio.encoders import AudioEncoder
from pal_audio.errors import PalError
from pal_audio.model import PalForConditionalGeneration
from pal_audio.model.parts import Parts
from pal_audio.training.batches import Size
from pal_audio.training.groups import rate_groups
from pal_audio.training.objectives.base import Objective
from pal_audio.training.recipe import HEAD, Stage

_SCORED_TOGETHER = 32


class HeadedEncoder(nn.Module):
    """An encoder and its head.

    Args:
        encoder: of the model; shared with it, not copied.
        head: takes frames CTD and lengths (C,) of the encoder's last layer (or its concatenated ones).
    """

    def __init__(self, encoder: AudioEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, features: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """The head's output and the clips' lengths in frames.

        Args:
            features: (W, ...) windows of all clips, one after another.
            num_samples: (C,) int64.
        """
        frames = self.encoder(features, num_samples)
        lengths_C = frames.lengths.to(features.device)  # encoders keep them on the CPU
        return self.head(frames.layers[-1], lengths_C), lengths_C


class FrameHead(nn.Linear):
    """Frames CTD to scores CTV."""

    def forward(self, frames_CTD: Tensor, lengths_C: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(frames_CTD)


class EncoderObjective(Objective[Example]):
    """Base: a member finds its targets, makes the head, and writes loss and score.

    Args:
        model: has the encoder.
        collator: makes features of clips.
        stage: names the encoder where there are several, the task, and the rates.

    Raises:
        PalError: the encoder is frozen.
    """

    module: HeadedEncoder
    inputs_read: ClassVar[tuple[str, ...]] = ("collator", "stage", "where", "name", "config", "_index")

    def __init__(self, model: PalForConditionalGeneration | Parts, collator: Collator, stage: Stage) -> None:
        self.model = model
        self.collator = collator
        self.stage = stage
        self.where = f"stage {stage.name!r}: objective {stage.objective}"
        self.name = stage.encoder or next(iter(model.encoders))
        self.encoder: AudioEncoder = model.encoders[self.name]  # type: ignore[assignment]
        self.config = self.encoder.config
        if self.config.frozen:
            raise PalError(f"{self.where}: the configuration of encoder {self.name!r} says frozen: true; take it out")
        # An encoder itself freezes what it never reads.
        self._trained = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]

    def chosen(self, examples: Sequence[Example], what: str) -> list[Example]:
        """Examples of the stage's task, one clip in each.

        Args:
            examples: of all tasks.
            what: names them in an error.

        Raises:
            PalError: there is none, or one has no clip or several.
        """
        tasks = [self.stage.task] if isinstance(self.stage.task, str) else self.stage.task
        found = [item for item in examples if not isinstance(item, Document) and (tasks is None or item.task in tasks)]
        if not found and tasks is None:
            raise PalError(f"{self.where}: no {what} example has sound")
        there = {item.task for item in found}
        if missing := [task for task in tasks or () if task not in there]:
            known = ", ".join(sorted({example.task for example in examples})) or "none"
            message = f"{self.where}: no {what} example has task {missing[0]!r}; there are {known}"
            if not found:
                raise PalError(message)
            warnings.warn(message, stacklevel=2)
        for example in found:
            if len(example.audio) != 1:
                raise PalError(f"{self.where}: example {example.id!r} has {len(example.audio)} clips; one is needed")
        return found

    def train_encoder(self) -> None:
        """Freeze all of the model but this encoder."""
        self.model.requires_grad_(False)
        for parameter in self._trained:
            parameter.requires_grad_(True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        self.train_encoder()
        rate = self.stage.train["encoder"]
        groups = rate_groups(self._trained, rate, self.stage.weight_decay)
        head = list(self.module.head.parameters())
        return groups + rate_groups(head, self.stage.train.get(HEAD, rate), self.stage.weight_decay)

    def size(self, item: Example) -> Size:
        return Size(self.collator.seconds(item), 0, item.id)

    def sound(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """`features` (W, ...) and `num_samples` (C,) of the examples' clips."""
        clips = [self.collator.clip(example.audio[0]) for example in examples]
        windows = [window for clip in clips for window in clip.features[self.name]]  # type: ignore[union-attr]
        samples = [clip.num_samples[self.name] for clip in clips]
        return {"features": nn.utils.rnn.pad_sequence(windows, batch_first=True), "num_samples": torch.tensor(samples)}

    @torch.no_grad()
    def outputs(self, examples: Sequence[Example]) -> Iterator[tuple[Example, Tensor]]:
        """Each example with the head's output for it, in evaluation mode, on the CPU: (V,), or TV cut to the clip's length."""
        self.module.eval()
        device = next(self.module.parameters()).device
        for start in range(0, len(examples), _SCORED_TOGETHER):
            some = examples[start : start + _SCORED_TOGETHER]
            output, lengths_C = self.module(**{key: value.to(device) for key, value in self.sound(some).items()})
            for example, row, length in zip(some, output.float().cpu(), lengths_C.tolist(), strict=True):
                yield example, row[:length] if row.ndim == 2 else row

    @abstractmethod
    def score(self) -> dict[str, float]: ...


def of_meta(example: Example, key: str, kind: type) -> Any:
    """A value of an example's `meta`, None where it has none.

    Raises:
        PalError: it is of another type.
    """
    value = example.meta.get(key)
    if value is not None and not isinstance(value, kind):
        raise PalError(f"example {example.id!r}: meta.{key} is {type(value).__name__}, not {kind.__name__}")
    return value
