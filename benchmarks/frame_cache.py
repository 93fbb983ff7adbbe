"""An epoch that reads frames against one that encodes live: Whisper-base's shape (random weights) with the quickstart's LLM.

    python benchmarks/frame_cache.py

Features of sound are kept in memory in the live epochs, so they pay for the encoder alone.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from pal_audio.data.collation import Collator
from pal_audio.data.encode import encode
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.model import build_model
from pal_audio.training.recipe import load_recipe

NUM_CLIPS, BATCH_SIZE, SECONDS, RATE_HZ = 32, 8, 3, 16_000
BASE = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "num_mel_bins": 80}
RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


def main() -> None:
    torch.manual_seed(0)
    spec = load_recipe(RECIPE).model.model_copy(update={"encoder": {"type": "whisper", "frozen": True, "config": BASE}})
    model, processor = build_model(spec, ["what sound is this? a bell"])
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=1e-4, fused=True)
    model.train()

    def epoch(collator: Collator) -> float:
        started = time.perf_counter()
        for start in range(0, NUM_CLIPS, BATCH_SIZE):
            model(**collator.training_batch(examples[start : start + BATCH_SIZE]), use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as name:
        examples = [example(Path(name), number) for number in range(NUM_CLIPS)]
        started = time.perf_counter()
        encode([part for item in examples for part in item.audio], model.encoders, Path(name) / "frames")
        print(f"encode {time.perf_counter() - started:.1f} s")
        live, cached = Collator(processor), Collator(processor, frames=FrameCache(Path(name) / "frames", model.encoders))
        for what, collator, times in (("cached", cached, 4), ("live", live, 2)):
            for item in examples:
                for part in item.audio:
                    collator.clip(part)
            print(what, *(f"{epoch(collator):.3f} s" for _ in range(times)))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


def example(folder: Path, number: int) -> Example:
    path = folder / f"{number}.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(SECONDS * RATE_HZ), RATE_HZ)
    asked = Message(role="user", content=[AudioPart(path=str(path)), TextPart(text="what sound is this?")])
    return Example(id=str(number), messages=[asked, Message(role="assistant", content="a bell")])


if __name__ == "__main__":
    main()
