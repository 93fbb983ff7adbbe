"""`events`: an encoder learns, frame by frame, what sounds in scenes of `type: mix`, by a linear head.

A scene's events are those of `meta.events`, and the sound behind them; of the categories that the stage names, or all. A frame
that an event touches has its label; frames have any number of labels. With `pitches` a note's MIDI number, rounded, is a
label too, beside that of the instrument. With `onsets` the first 0.1 s of what begins within the clip, sounds behind left out,
have a label of their own, the same for all: it parts sounds that overlap, and one from the next of its kind. With `segment_loss`
each sound is named as a whole too, by the mean of its frames' scores, among the labels that do not sound with it: frames alone
learn what is heard rather than what tells two sounds apart.

Source: strong labels as in sound event detection (Mesaros et al., "Sound Event Detection in the DCASE 2017 Challenge", 2019),
binary cross-entropy for each label; onsets beside what sounds after "Onsets and Frames" (Hawthorne et al., arXiv 1710.11153,
section 3); the rest is our choice.

Shapes: C clips, T encoder frames, V labels, K labels that are not pitches or onsets, N frames of all clips, E sounds of a clip at
most.
"""

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_audio.data.manifest import Example
from pal_audio.data.mixing.sounding import Sounding, sounding
from pal_audio.encoders.base import length_mask
from pal_audio.errors import PalError
from pal_audio.training.objectives.encoder import EncoderObjective, FrameHead, HeadedEncoder

_NO_SOUND = -100
_ONSET_S = 0.1  # of frames of 40 ms three or four are marked


class EventsObjective(EncoderObjective):
    """Binary cross-entropy of a clip (unit): the mean over its frames of the sum over labels. With `segment_loss` so many times
    the mean over its sounds of `segment_losses` is added.

    Args:
        model, collator, stage: as of `EncoderObjective`.

    Raises:
        PalError: scikit-learn, which scores, is not installed.
    """

    inputs_read = (*EncoderObjective.inputs_read, "names")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if find_spec("sklearn") is None:
            raise PalError(f"{self.where} is scored by scikit-learn, which is not installed: pip install 'pal-audio[eval]'")

    def prepare(self, train: Sequence[Example], test: Sequence[Example]) -> Sequence[Example]:
        chosen, self._held_out = self.chosen(train, "training"), self.chosen(test, "held-out")
        heard = [one for example in chosen for one in self.heard(example)]
        self.kinds = sorted({one.label for one in heard})
        notes = {round(one.pitch) for one in heard if self.stage.pitches and one.pitch is not None}
        if self.stage.pitches and not notes:
            raise PalError(f"{self.where}: no training example has a note with a pitch; take `pitches` out")
        self.names = [*self.kinds, *(f"note {number}" for number in sorted(notes))]
        self._index = {label: number for number, label in enumerate(self.names)}
        if len(self._index) < len(self.names):
            twice = next(label for label in self.kinds if self._index[label] >= len(self.kinds))
            raise PalError(f"{self.where}: a sound is called as a pitch is, {twice!r}")
        self.names += ["onset"] if self.stage.onsets else []
        if len(self._index) < 2:
            raise PalError(
                f"{self.where}: the training examples have {len(self._index)} labels; at least 2 are needed"
                + (f"; are categories {self.stage.categories} those of the mix?" if self.stage.categories else "")
            )
        if not self.held_out():
            raise PalError(f"{self.where}: no held-out example has labels of the training examples alone")
        self.module = HeadedEncoder(self.encoder, FrameHead(self.config.frame_size, len(self.names)))
        return chosen

    def held_out(self) -> Sequence[Example]:
        return [
            item for item in self._held_out if all(label in self._index for one in self.heard(item) for label in self.labels(one))
        ]

    def notes(self) -> list[str]:
        return [f"events: encoder {self.name}, {len(self.names)} labels, any number of them a frame"]

    def heard(self, example: Example) -> list[Sounding]:
        """The sounds of a scene that are learnt."""
        return sounding(example, self.stage.categories)

    def labels(self, one: Sounding) -> Iterator[str]:
        """What a sound is called; a note with a pitch has two labels."""
        yield one.label
        if self.stage.pitches and one.pitch is not None:
            yield f"note {round(one.pitch)}"

    def inputs(self, items: Sequence[Example]) -> dict[str, Any]:
        sound = self.sound(items)
        lengths = [self.config.output_lengths(num_samples) for num_samples in sound["num_samples"].tolist()]
        return sound | {"targets": torch.from_numpy(self.targets(items, lengths))} | self.segments(items, lengths)

    def segments(self, items: Sequence[Example], lengths: Sequence[int]) -> dict[str, Tensor]:
        """Where each sound is: `segments` (C, E, 2) int64, its first frame and the one behind its last, and `segment_labels`
        (C, E) int64, -100 behind a clip's last; nothing without `segment_loss`."""
        if not self.stage.segment_loss:
            return {}
        found = [list(self._spans(example, length)) for example, length in zip(items, lengths, strict=True)]
        num_sounds = max(map(len, found))
        rows = [[*spans, *[(0, 0, _NO_SOUND)] * (num_sounds - len(spans))] for spans in found]
        segments_CE3 = torch.tensor(rows, dtype=torch.int64).view(len(items), num_sounds, 3)
        return {"segments": segments_CE3[..., :2], "segment_labels": segments_CE3[..., 2]}

    def _spans(self, example: Example, length: int) -> Iterator[tuple[int, int, int]]:
        for one in self.heard(example):
            frames = _frames(one.onset_s, one.offset_s, self.config.frame_rate_hz, length)
            if frames.start < frames.stop:
                yield frames.start, frames.stop, self._index[one.label]

    def targets(self, items: Sequence[Example], lengths: Sequence[int]) -> np.ndarray:
        """CTV float32, 1 where a label sounds; onsets are the last label; the padding has 0."""
        rate_hz = self.config.frame_rate_hz
        targets_CTV = np.zeros((len(items), max(lengths), len(self.names)), dtype=np.float32)
        for row, example in enumerate(items):
            for one in self.heard(example):
                frames = _frames(one.onset_s, one.offset_s, rate_hz, lengths[row])
                for label in self.labels(one):
                    targets_CTV[row, frames, self._index[label]] = 1
                if self.stage.onsets and not one.behind and one.onset_s >= 0:
                    end_s = min(one.onset_s + _ONSET_S, one.offset_s)
                    targets_CTV[row, _frames(one.onset_s, end_s, rate_hz, lengths[row]), -1] = 1
        return targets_CTV

    def num_units(self, inputs: dict[str, Any]) -> int:
        return len(inputs["targets"])

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        scores_CTV, lengths_C = module(inputs["features"], inputs["num_samples"])
        return self.losses(scores_CTV, lengths_C, inputs["targets"], inputs).sum() / num_units

    def losses(self, scores_CTV: Tensor, lengths_C: Tensor, targets_CTV: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Loss (C,) of each clip, of its frames and its sounds; `inputs` has what `segments` gives."""
        losses_C = event_loss(scores_CTV, lengths_C, targets_CTV)
        if not self.stage.segment_loss:
            return losses_C
        of_kinds = slice(len(self.kinds))
        segments_CE2, labels_CE = inputs["segments"], inputs["segment_labels"]
        of_sounds_C = segment_losses(scores_CTV[..., of_kinds], targets_CTV[..., of_kinds], segments_CE2, labels_CE)
        return losses_C + self.stage.segment_loss * of_sounds_C

    def score(self) -> dict[str, float]:
        """Over frames the mean over labels of their average precision, beside what a guess gets, that of onsets apart; and the
        share of sounds whose label has the highest mean score while they sound: of all with which not every label sounds, labels
        that sound with them left out (`sound_accuracy`), and of scenes of one sound (`accuracy`, where there are such).
        """
        from sklearn.metrics import average_precision_score

        scores, targets, right, right_of_all = [], [], [], []
        held_out = self.held_out()
        for example, scores_TV in self.outputs(held_out):
            targets_TV = self.targets([example], [len(scores_TV)])[0]
            scores.append(scores_TV.numpy())
            targets.append(targets_TV)
            of_kinds_TK, kinds_TK = scores_TV[:, : len(self.kinds)], torch.from_numpy(targets_TV[:, : len(self.kinds)])
            is_alone = len(sounding(example)) == 1
            for start, end, label in self._spans(example, len(scores_TV)):
                others_K = kinds_TK[start:end].any(0)
                others_K[label] = False
                is_right = int(of_kinds_TK[start:end].mean(0).masked_fill(others_K, -torch.inf).argmax()) == label
                if others_K.sum() < len(self.kinds) - 1:
                    right_of_all.append(is_right)
                if is_alone:
                    right.append(is_right)
        scores_NV, targets_NV = np.concatenate(scores), np.concatenate(targets)
        present = np.flatnonzero(targets_NV[:, : len(self._index)].any(0))
        precisions = [average_precision_score(targets_NV[:, label], scores_NV[:, label]) for label in present]
        found = {"frame_map": float(np.mean(precisions)), "chance": float(targets_NV[:, present].mean()), "num": len(held_out)}
        if right_of_all:
            found |= {"sound_accuracy": sum(right_of_all) / len(right_of_all), "num_sounds": len(right_of_all)}
        if self.stage.onsets and targets_NV[:, -1].any():
            found["onset_ap"] = float(average_precision_score(targets_NV[:, -1], scores_NV[:, -1]))
        return found | ({"accuracy": sum(right) / len(right), "num_of_one": len(right)} if right else {})


def _frames(start_s: float, end_s: float, rate_hz: float, length: int) -> slice:
    """The frames of a clip that a span of time touches; one that began before the clip touches its first."""
    return slice(max(math.floor(start_s * rate_hz), 0), max(min(math.ceil(end_s * rate_hz), length), 0))


def segment_losses(scores_CTK: Tensor, targets_CTK: Tensor, segments_CE2: Tensor, labels_CE: Tensor) -> Tensor:
    """Cross-entropy (C,) of the mean score of each sound's frames, the mean over a clip's sounds; 0 where there is none.

    Args:
        scores_CTK, targets_CTK: of frames; the others that sound within a segment are no wrong answers.
        segments_CE2, labels_CE: as `EventsObjective.segments` gives them.
    """
    place_T = torch.arange(scores_CTK.shape[1], device=scores_CTK.device)
    within_CET = (segments_CE2[..., :1] <= place_T) & (place_T < segments_CE2[..., 1:])
    within_CET = within_CET.to(torch.float32)
    own_CEK = F.one_hot(labels_CE.clamp(min=0), scores_CTK.shape[2]).bool()
    with torch.autocast(scores_CTK.device.type, enabled=False):
        means_CEK = within_CET @ scores_CTK.float() / within_CET.sum(-1, keepdim=True).clamp(min=1)
        others_CEK = (within_CET @ targets_CTK > 0) & ~own_CEK
    scores_CKE = means_CEK.masked_fill(others_CEK, -torch.inf).transpose(1, 2)
    each_CE = F.cross_entropy(scores_CKE, labels_CE, reduction="none", ignore_index=_NO_SOUND)
    return each_CE.sum(1) / (labels_CE != _NO_SOUND).sum(1).clamp(min=1)


def event_loss(scores_CTV: Tensor, lengths_C: Tensor, targets_CTV: Tensor) -> Tensor:
    """Loss (C,) of each clip: the mean over its own frames of the sum over labels."""
    each_CT = F.binary_cross_entropy_with_logits(scores_CTV.float(), targets_CTV, reduction="none").sum(-1)
    mask_CT = length_mask(lengths_C, each_CT.shape[1])
    return (each_CT * mask_CT).sum(1) / lengths_C
