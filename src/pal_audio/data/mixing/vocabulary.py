"""How labels read: a noun for questions, a clause for captions. The labels are those of ESC-50 and of our own sounds.

Source: our choice.
"""

from __future__ import annotations

_WORDS = """
airplane: an airplane: an airplane flies over
bell: a bell: a bell rings
bird: a bird: a bird sings
breathing: breathing: someone breathes
brushing teeth: brushing of teeth: someone brushes teeth
can opening: a can being opened: a can is opened
car horn: a car horn: a car honks
cat: a cat: a cat meows
chainsaw: a chainsaw: a chainsaw runs
chirping birds: chirping birds: birds chirp
church bells: church bells: church bells ring
clapping: clapping: people clap
clock: a clock: a clock runs
clock alarm: an alarm clock: an alarm clock goes off
clock tick: a ticking clock: a clock ticks
coughing: coughing: someone coughs
cow: a cow: a cow moos
crackling fire: a crackling fire: a fire crackles
crickets: crickets: crickets chirp
crow: a crow: a crow caws
crying baby: a crying baby: a baby cries
dog: a dog: a dog barks
door wood creaks: a creaking door: a door creaks
door wood knock: a knock on a door: someone knocks on a door
drinking sipping: sipping: someone sips
drum: a drum: a drum is struck
engine: an engine: an engine runs
fireworks: fireworks: fireworks go off
footsteps: footsteps: someone walks
frog: a frog: a frog croaks
glass breaking: breaking glass: glass breaks
guitar: a guitar: a guitar is plucked
hand saw: a hand saw: a hand saw cuts
helicopter: a helicopter: a helicopter flies
hen: a hen: a hen clucks
insects: insects: insects buzz
keyboard typing: typing on a keyboard: someone types
laughing: laughter: someone laughs
mouse click: a mouse click: a mouse clicks
pig: a pig: a pig grunts
pouring water: pouring water: water is poured
rain: rain: rain falls
rooster: a rooster: a rooster crows
sea waves: sea waves: waves break
sheep: a sheep: a sheep bleats
siren: a siren: a siren wails
sneezing: sneezing: someone sneezes
snoring: snoring: someone snores
telephone: a telephone: a telephone rings
thunderstorm: thunder: it thunders
toilet flush: a flushing toilet: a toilet flushes
train: a train: a train passes
vacuum cleaner: a vacuum cleaner: a vacuum cleaner runs
washing machine: a washing machine: a washing machine runs
water drop: a water drop: a drop falls
water drops: water drops: water drips
whistle: a whistle: someone whistles
wind: wind: wind blows
"""
_SOUNDS = {label: (noun, clause) for label, noun, clause in (line.split(": ") for line in _WORDS.strip().splitlines())}
_INSTRUMENT_CLAUSES = {"choir": "a choir sings"}


def noun_of(label: str, category: str) -> str:
    """How a label reads in a question: "a dog", "an organ", "the word seven"; an unknown one as it is."""
    if category == "instrument":
        return f"{_article(label)} {label}"
    if category == "digit":
        return f"the word {label}"
    return _SOUNDS[label][0] if label in _SOUNDS else label


def clause_of(label: str, category: str) -> str:
    """How a label reads in a caption: "a dog barks", "an organ plays", "a voice says seven"; an unknown one as it is."""
    if category == "instrument":
        return _INSTRUMENT_CLAUSES.get(label, f"{_article(label)} {label} plays")
    if category == "digit":
        return f"a voice says {label}"
    return _SOUNDS[label][1] if label in _SOUNDS else label


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"
