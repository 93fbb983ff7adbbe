"""`ctc`: an encoder learns transcription by a linear head over characters or words.

The target is `meta.transcript`, else the assistant's text: lower case, without ASCII punctuation and repeated spaces. What
symbols there are is found in the training examples. A clip with fewer frames than its target needs (one a symbol, and one
between two that are equal) is refused: there is no way to write the target, so its loss would be infinite.

Source: Graves et al., "Connectionist Temporal Classification" (2006), with greedy decoding; normalisation is our choice.

Shapes: C clips, T encoder frames, V symbols with the blank, U symbols of a target.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.training.objectives.encoder import EncoderObjective, FrameHead, HeadedEncoder, of_meta
from pal_audio.training.scores import normalise

BLANK = 0


class CtcObjective(EncoderObjective):
    """CTC loss of a clip over the symbols of its target (units).

    Args:
        model, collator, stage: as of `EncoderObjective`.

    Raises:
        PalError: jiwer, which scores, is not installed.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if find_spec("jiwer") is None:
            raise PalError(f"{self.where} is scored by jiwer, which is not installed: pip install 'pal-audio[eval]'")

    def prepare(self, train: Sequence[Example], test: Sequence[Example]) -> Sequence[Example]:
        chosen, self._held_out = self.chosen(train, "training"), self.chosen(test, "held-out")
        targets = [self.target(example) for example in (*chosen, *self._held_out)][: len(chosen)]
        self.symbols = sorted({symbol for target in targets for symbol in target})
        self._index = {symbol: number for number, symbol in enumerate(self.symbols, start=BLANK + 1)}
        config = self.encoder.config
        short = [example.id for example in chosen if not self._is_long_enough(example)]
        if short:
            raise self._too_short(short[0], f"{len(short)} examples have fewer frames than their text needs, the first is ")
        self.module = HeadedEncoder(self.encoder, FrameHead(config.frame_size, len(self.symbols) + 1))
        return chosen

    def held_out(self) -> Sequence[Example]:
        return [item for item in self._held_out if set(self.target(item)) <= self._index.keys() and self._is_long_enough(item)]

    def _is_long_enough(self, example: Example) -> bool:
        config = self.encoder.config
        num_samples = int(self.collator.seconds(example) * config.sampling_rate_hz)
        return config.output_lengths(num_samples) >= _frames_needed(self.target(example))

    def notes(self) -> list[str]:
        return [f"ctc: encoder {self.name}, {len(self.symbols)} {self.stage.symbols or 'characters'} and the blank"]

    def target(self, example: Example) -> list[str]:
        """The symbols of an example's text.

        Raises:
            PalError: it has none.
        """
        text = of_meta(example, "transcript", str)
        normalised = normalise(text if text is not None else example.answer or "")
        if not normalised:
            raise PalError(f"{self.where}: example {example.id!r} has no text to learn (meta.transcript, or an answer)")
        return normalised.split() if self.stage.symbols == "words" else list(normalised)

    def inputs(self, items: Sequence[Example]) -> dict[str, Any]:
        sound = self.sound(items)
        lengths = [self.encoder.config.output_lengths(num_samples) for num_samples in sound["num_samples"].tolist()]
        return sound | self.targets(items, lengths)

    def targets(self, items: Sequence[Example], lengths: Sequence[int]) -> dict[str, Tensor]:
        """`targets` CU and `target_lengths` (C,) of examples with so many frames.

        Raises:
            PalError: one has fewer than its text needs.
        """
        targets = [self.target(example) for example in items]
        for example, target, length in zip(items, targets, lengths, strict=True):
            if length < _frames_needed(target):  # its header promised more
                raise self._too_short(example.id, "fewer frames than the text needs: example ")
        rows = [torch.tensor([self._index[symbol] for symbol in target]) for target in targets]
        return {
            "targets": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=BLANK),
            "target_lengths": torch.tensor([len(row) for row in rows]),
        }

    def num_units(self, inputs: dict[str, Any]) -> int:
        return int(inputs["target_lengths"].sum())

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        scores_CTV, lengths_C = module(inputs["features"], inputs["num_samples"])
        return ctc_losses(scores_CTV, lengths_C, inputs["targets"], inputs["target_lengths"]).sum() / num_units

    def score(self) -> dict[str, float]:
        """Word and character error rates of greedy decoding; over 1 where more is written than was said."""
        import jiwer

        written = [self.decode(scores_TV) for _, scores_TV in self.outputs(self._held_out)]
        truths = [self._text(self.target(example)) for example in self._held_out]
        return {"wer": jiwer.wer(truths, written), "cer": jiwer.cer(truths, written), "num": len(truths)}

    def decode(self, scores_TV: Tensor) -> str:
        """The text of the best symbol of each frame: repeats joined, blanks dropped."""
        best = torch.unique_consecutive(scores_TV.argmax(-1)).tolist()
        return self._text([self.symbols[number - 1] for number in best if number != BLANK])

    def _text(self, symbols: Sequence[str]) -> str:
        return " ".join(symbols) if self.stage.symbols == "words" else "".join(symbols)

    def _too_short(self, name: str, what: str) -> PalError:
        mend = "leave such clips out, or give the encoder more frames a second"
        return PalError(f"{self.where}: {what}{name!r}; {mend}")


def ctc_losses(scores_CTV: Tensor, lengths_C: Tensor, targets_CU: Tensor, target_lengths_C: Tensor) -> Tensor:
    """CTC loss (C,) of each clip, the sum over its symbols."""
    log_TCV = scores_CTV.float().log_softmax(-1).transpose(0, 1)
    losses_C: Tensor = F.ctc_loss(log_TCV, targets_CU, lengths_C, target_lengths_C, BLANK, reduction="none")
    return losses_C


def _frames_needed(target: Sequence[str]) -> int:
    return len(target) + sum(one == other for one, other in pairwise(target))
