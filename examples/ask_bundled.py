"""Ask the model that comes with the package about sounds that the package makes itself.

python examples/ask_bundled.py [FOLDER]        the sounds are left there, to be listened to; default: runs/demo-sounds
"""

import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from pal_audio.commands.models import BUNDLED
from pal_audio.data.sounds import draw, render
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.model.confidence import probability_of

RATE_HZ = 16_000
SECONDS_OF_ONE, SECONDS_OF_MORE = 4, 8  # about what it learnt from; in much more silence it hears less
BEGIN_S, PAUSE_S, LONGEST_S, LEVEL = 0.5, 0.5, 2.0, 0.3
ASKED = [
    (("dog",), "What sound is this?"),
    (("rain",), "What do you hear?"),
    (("rain", "dog"), "Which sound comes first?"),
    (("rain", "dog"), "How many different sounds are there?"),
    (("dog", "engine"), "Which sound comes last?"),
    (("dog", "engine"), "Describe the sounds in their order."),
]
"""Kinds of sounds (`pal_audio.data.sounds`) one after another, and what is asked."""


def compose(kinds: tuple[str, ...], seed: int) -> np.ndarray:
    """Sounds with pauses, (S,) float32. The model has never heard their like: it learnt from recordings."""
    rng, begin = np.random.default_rng(seed), int(BEGIN_S * RATE_HZ)
    wave_S = np.zeros((SECONDS_OF_ONE if len(kinds) == 1 else SECONDS_OF_MORE) * RATE_HZ, dtype=np.float32)
    for kind in kinds:
        sound_S = LEVEL * render(kind, draw(kind, "test", rng, LONGEST_S), RATE_HZ)
        wave_S[begin : begin + len(sound_S)] = sound_S
        begin += len(sound_S) + int(PAUSE_S * RATE_HZ)
    return wave_S


def make_sounds(folder: Path) -> dict[tuple[str, ...], Path]:
    """Write what is asked about; files by what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {kinds: folder / f"{'-'.join(kinds)}.wav" for kinds, _ in ASKED}
    for kinds, file in files.items():
        soundfile.write(file, compose(kinds, len(kinds)), RATE_HZ)
    return files


def main(folder: Path) -> list[tuple[str, str, str, float]]:
    """Print a table: file, question, answer and its probability; and give it back."""
    if not (BUNDLED / "config.json").is_file():
        raise PalError("this copy of the package comes without a model; `pal train quickstart` makes one")
    model, processor = load(BUNDLED)
    files, rows = make_sounds(folder), []
    for kinds, question in ASKED:
        file = files[kinds]
        content = [{"type": "audio", "path": str(file)}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=32, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        answer = processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append((file.name, question, answer, probability_of(output)))
    table = Table(
        "file", "question", "answer", "probability", title=f"the model that comes with PAL, and sounds that PAL made ({folder})"
    )
    for name, question, answer, probability in rows:
        table.add_row(name, question, answer, f"{probability:.0%}")
    console = Console()
    console.print(table)
    console.print('A file of your own: pal ask FILE "What sound is this?"\nWhat it knows: docs/bundled.md')
    return rows


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-sounds"))
    except PalError as error:
        sys.exit(f"ask_bundled: error: {error}")
