"""`events-ctc`: one encoder learns sounds and speech at once: `events` from scenes and `ctc` from those that have a transcript.

Each has a head of its own over the same frames. Examples without `meta.events` or without `meta.transcript` teach the other.
Source: our choice.

Shapes: C clips, T encoder frames, D width, V labels or symbols, U symbols of a target.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.training.objectives.ctc import CtcObjective, ctc_losses
from pal_audio.training.objectives.encoder import EncoderObjective, HeadedEncoder
from pal_audio.training.objectives.events import EventsObjective


class TwoHeads(nn.Module):
    """Frames CTD to the scores of both heads."""

    def __init__(self, events: nn.Module, ctc: nn.Module) -> None:
        super().__init__()
        self.events = events
        self.ctc = ctc

    def forward(self, frames_CTD: Tensor, lengths_C: Tensor) -> tuple[Tensor, Tensor]:
        return self.events(frames_CTD, lengths_C), self.ctc(frames_CTD, lengths_C)


class EventsCtcObjective(EncoderObjective):
    """A clip (unit) has the loss of its events and, a symbol of its transcript, that of CTC.

    Args:
        model, collator, stage: as of `EncoderObjective`.
    """

    inputs_read = tuple(name for name in EncoderObjective.inputs_read if name != "_index")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.events, self.ctc = EventsObjective(*args), CtcObjective(*args)

    def prepare(self, train: Sequence[Example], test: Sequence[Example]) -> Sequence[Example]:
        chosen, self._held_out = self.chosen(train, "training"), self.chosen(test, "held-out")
        for examples, what in ((chosen, "training"), (self._held_out, "held-out")):
            for key, of in (("events", _has_events), ("transcript", _has_transcript)):
                if not any(map(of, examples)):
                    raise PalError(f"{self.where}: no {what} example has meta.{key}; take objective events or ctc alone")
        self.events.prepare([*filter(_has_events, chosen)], [*filter(_has_events, self._held_out)])
        self.ctc.prepare([*filter(_has_transcript, chosen)], [*filter(_has_transcript, self._held_out)])
        self.module = HeadedEncoder(self.encoder, TwoHeads(self.events.module.head, self.ctc.module.head))
        return [example for example in chosen if _has_events(example) or _has_transcript(example)]

    def held_out(self) -> Sequence[Example]:
        """Of `ctc`, those that its own rule leaves out are left out; of `events` likewise."""
        fits = {example.id for example in [*self.events.held_out(), *self.ctc.held_out()]}
        no_ctc = {e.id for e in filter(_has_transcript, self._held_out)} - {e.id for e in self.ctc.held_out()}
        no_events = {e.id for e in filter(_has_events, self._held_out)} - {e.id for e in self.events.held_out()}
        return [example for example in self._held_out if example.id in fits - no_ctc - no_events]

    def notes(self) -> list[str]:
        return [*self.events.notes(), *self.ctc.notes()]

    def maker(self, num_workers: int = 0) -> Self:
        copy = super().maker(num_workers)
        copy.events, copy.ctc = self.events.maker(), self.ctc.maker()
        for part in (copy.events, copy.ctc):  # they make targets alone
            del part.collator
        return copy

    def inputs(self, items: Sequence[Example]) -> dict[str, Any]:
        with_events, spoken = ([n for n, item in enumerate(items) if of(item)] for of in (_has_events, _has_transcript))
        sound = self.sound(items)
        lengths = [self.config.output_lengths(num_samples) for num_samples in sound["num_samples"].tolist()]
        sound |= {"event_rows": torch.tensor(with_events).long(), "ctc_rows": torch.tensor(spoken).long()}
        if with_events:
            scenes, their_lengths = [items[n] for n in with_events], [lengths[n] for n in with_events]
            sound["event_targets"] = torch.from_numpy(self.events.targets(scenes, their_lengths))
            sound |= self.events.segments(scenes, their_lengths)
        if spoken:
            sound |= self.ctc.targets([items[n] for n in spoken], [lengths[n] for n in spoken])
        return sound

    def num_units(self, inputs: dict[str, Any]) -> int:
        return len(inputs["num_samples"])

    def loss(self, module: nn.Module, inputs: dict[str, Any], num_units: int) -> Tensor:
        (events_CTV, symbols_CTV), lengths_C = module(inputs["features"], inputs["num_samples"])
        total = 0 * (events_CTV.sum() + symbols_CTV.sum()).float()  # both heads have a gradient in every part
        if len(rows := inputs["event_rows"]):
            scores_CTV = events_CTV[rows, : inputs["event_targets"].shape[1]]
            total = total + self.events.losses(scores_CTV, lengths_C[rows], inputs["event_targets"], inputs).sum()
        if len(rows := inputs["ctc_rows"]):
            losses_C = ctc_losses(symbols_CTV[rows], lengths_C[rows], inputs["targets"], inputs["target_lengths"])
            total = total + (losses_C / inputs["target_lengths"]).sum()
        return total / num_units

    def score(self) -> dict[str, float]:
        """The scores of both, as `events.NAME` and `ctc.NAME`."""
        both = {"events": self.events, "ctc": self.ctc}
        return {f"{key}.{name}": value for key, objective in both.items() for name, value in objective.score().items()}


def _has_events(example: Example) -> bool:
    return "events" in example.meta


def _has_transcript(example: Example) -> bool:
    return "transcript" in example.meta
