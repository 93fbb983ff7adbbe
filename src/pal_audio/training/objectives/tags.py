"""`tags`: an encoder learns labels of clips by a linear head over its pooled frames.

An example's labels are `meta.labels` (any number of them), else `meta.label` (one), else, where the stage names a task, the
assistant's text (one). One label each is learnt by cross-entropy; any number by binary cross-entropy, the mean over labels.

Shapes: C clips, T encoder frames, D width, V labels.
"""

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_audio.data.manifest import Example
from pal_audio.encoders.base import length_mask
from pal_audio.errors import PalError
from pal_audio.training.objectives.encoder import EncoderObjective, HeadedEncoder, of_meta
from pal_audio.training.scores import normalise


class TagsHead(nn.Module):
    """Frames CTD to scores CV: pooled over a clip's own frames, then linear.

    Args:
        width: D.
        num_labels: V.
        attention: a learned weight for each frame (softmax over the clip), else the mean.
    """

    def __init__(self, width: int, num_labels: int, attention: bool) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1) if attention else None
        self.out = nn.Linear(width, num_labels)

    def forward(self, frames_CTD: Tensor, lengths_C: Tensor) -> Tensor:
        mask_CT1 = length_mask(lengths_C, frames_CTD.shape[1])[:, :, None]
        scores_CT1 = torch.zeros_like(frames_CTD[:, :, :1]) if self.weight is None else self.weight(frames_CTD)
        weights_CT1 = scores_CT1.float().masked_fill(~mask_CT1, float("-inf")).softmax(1).to(frames_CTD.dtype)
        scores_CV: Tensor = self.out((weights_CT1 * frames_CTD).sum(1))
        return scores_CV


class TagsObjective(EncoderObjective):
    """Cross-entropy of a clip's labels; a clip is a unit."""

    inputs_read = (*EncoderObjective.inputs_read, "names", "multi")

    def prepare(self, train: Sequence[Example], test: Sequence[Example]) -> Sequence[Example]:
        chosen, self._held_out = self.chosen(train, "training"), self.chosen(test, "held-out")
        both = [*chosen, *self._held_out]
        labels = [self.labels(example) for example in both]
        self.multi = isinstance(labels[0], list)
        for example, found in zip(both, labels, strict=True):
            if isinstance(found, list) != self.multi:
                raise PalError(f"{self.where}: {both[0].id!r} and {example.id!r} differ: give all examples meta.labels, or none")
        if self.multi and find_spec("sklearn") is None:
            raise PalError(f"{self.where} is scored by scikit-learn, which is not installed: pip install 'pal-audio[eval]'")
        self.names = sorted({label for found in labels[: len(chosen)] for label in _as_list(found)})
        held_out = {label for found in labels[len(chosen) :] for label in _as_list(found)}
        if not held_out & set(self.names):
            raise PalError(f"{self.where}: no held-out example has a label of the training examples")
        if len(self.names) < 2:
            raise PalError(f"{self.where}: the training examples have {len(self.names)} labels; at least 2 are needed")
        self._index = {label: number for number, label in enumerate(self.names)}
        head = TagsHead(self.config.frame_size, len(self.names), self.stage.pooling == "attention")
        self.module = HeadedEncoder(self.encoder, head)
        return chosen

    def held_out(self) -> Sequence[Example]:
        return [item for item in self._held_out if self._index.keys() >= {*_as_list(self.labels(item))}]

    def notes(self) -> list[str]:
        kind = "any number of them a clip" if self.multi else "one a clip"
        return [f"tags: encoder {self.name}, {len(self.names)} labels, {kind}"]

    def labels(self, example: Example) -> str | list[str]:
        """An example's label, or the list of its labels.

        Raises:
            PalError: it has none, or they are no strings.
        """
        several = of_meta(example, "labels", list)
        if several is not None:
            if not all(isinstance(label, str) for label in several):
                raise PalError(f"example {example.id!r}: meta.labels must be a list of strings")
            return list(several)
        label = of_meta(example, "label", str)
        if label is None and self.stage.task is not None and example.answer is not None:
            label = normalise(example.answer)
        if not label:
            mend = "give it meta.label or meta.labels, or name the task whose answers are labels: `task: ...`"
            raise PalError(f"{self.where}: example {example.id!r} has no label; {mend}")
        return str(label)

    def inputs(self, items: Sequence[Example]) -> dict[str, Any]:
        numbers = [[self._index[label] for label in _as_list(self.labels(example))] for example in items]
        if not self.multi:
            return self.sound(items) | {"targets": torch.tensor([number for (number,) in numbers])}
        targets_CV = torch.zeros(len(items), len(self.names))
        for row, chosen in enumerate(numbers):
            targets_CV[row, chosen] = 1
        return self.sound(items) | {"targets": targets_CV}

    def num_units(self, inputs: dict[str, Any]) -> int:
        return len(inputs["targets"])

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        scores_CV, _ = module(inputs["features"], inputs["num_samples"])
        if self.multi:
            summed = F.binary_cross_entropy_with_logits(scores_CV.float(), inputs["targets"], reduction="sum") / len(self.names)
        else:
            summed = F.cross_entropy(scores_CV.float(), inputs["targets"], reduction="sum")
        return summed / num_units

    def score(self) -> dict[str, float]:
        """Accuracy, or the mean over labels of their average precision; both beside what a guess gets.

        A held-out label that was never trained is wrong in accuracy, and left out of the mean, as is a trained one that no
        held-out clip has.
        """
        truths = [_as_list(self.labels(example)) for example in self._held_out]
        scores_NV = torch.stack([row for _, row in self.outputs(self._held_out)])
        if not self.multi:
            flat = [label for (label,) in truths]
            right = sum(self.names[int(number)] == label for number, label in zip(scores_NV.argmax(-1), flat, strict=True))
            return {"accuracy": right / len(flat), "chance": max(Counter(flat).values()) / len(flat), "num": len(flat)}
        from sklearn.metrics import average_precision_score

        found = {label: [label in truth for truth in truths] for label in self.names}
        found = {label: column for label, column in found.items() if any(column)}
        precisions = [average_precision_score(column, scores_NV[:, self._index[label]]) for label, column in found.items()]
        shares = [sum(column) / len(column) for column in found.values()]
        precision, share = (float(sum(values)) / len(found) for values in (precisions, shares))
        return {"map": precision, "chance": share, "num": len(truths), "num_labels": len(found)}


def _as_list(labels: str | list[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else labels
