"""Scenes out of any sounds, with exact questions and answers: `type: mix` in a recipe's `data:`.

sound_sources, settings, tasks   what a recipe may say; config.py puts it together
reading, catalogue               sources -> clips by split and label, training and test kept apart
clips                            files -> waveforms in memory, cut where they sound
layout, acoustics                when each event begins; levels, noise, rooms
augmentation                     how training sounds are changed
captions, vocabulary             how it is told
compose                          (seed, split, index) -> waveform, question, answer
"""

from pal_audio.data.mixing.captions import caption, parse_caption
from pal_audio.data.mixing.catalogue import Catalogue, Clip
from pal_audio.data.mixing.compose import Composed, Composer
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.mixing.reading import read_catalogue

__all__ = ["Catalogue", "Clip", "Composed", "Composer", "MixConfig", "caption", "parse_caption", "read_catalogue"]
