"""What a step costs the main process when frames come from a cache: CPU milliseconds of a batch of 96; no GPU is needed.

    OMP_NUM_THREADS=1 python benchmarks/host_work.py [--profile]

Clips of 5 s, a frozen encoder of width 256 at 25 frames a second in bfloat16, eight wordings of the question.
"""

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from pal_audio.data.collation import Collator
from pal_audio.data.encode import encode
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, read_manifest, write_manifest
from pal_audio.model import ModelSpec, build_model

NUM_CLIPS, BATCH_SIZE, SECONDS, RATE_HZ, EPOCHS = 960, 96, 5, 16_000, 4
ENCODER = {
    "type": "conv",
    "frozen": True,
    "hidden_size": 256,
    "num_layers": 1,
    "num_heads": 4,
    "num_mels": 32,
    "spec_augment": False,
}
LLM = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def main() -> None:
    torch.manual_seed(0)
    spec = ModelSpec(llm=LLM | {"tokenizer": {"vocab_size": 400}}, encoder=ENCODER, preset="pal")
    model, processor = build_model(spec, [question(number) for number in range(8)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "m.jsonl", [example(folder, number) for number in range(NUM_CLIPS)])
        examples = read_manifest(folder / "m.jsonl")
        started = time.perf_counter()
        encode([part for item in examples for part in item.audio], model.encoders, folder / "frames", "bfloat16")
        print(f"encode: {NUM_CLIPS / (time.perf_counter() - started):.0f} clips a second")
        started = time.process_time()
        frames = FrameCache(folder / "frames", model.encoders)
        collator = Collator(processor, frames=frames)
        lengths = [collator.seconds(item) for item in examples]
        print(f"open the cache, sizes of {len(lengths)} examples: {time.process_time() - started:.2f} s of CPU")
        for number in range(EPOCHS):
            times = epoch(collator, examples, np.random.default_rng(number))
            print(f"epoch {number}: {1000 * np.mean(times):.1f} ms of CPU a batch (at most {1000 * max(times):.1f})")
        if "--profile" in sys.argv:
            with cProfile.Profile() as profile:
                epoch(collator, examples, np.random.default_rng(9))
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)
        inputs = collator.training_batch(examples[:BATCH_SIZE])
        model.train()
        started = time.perf_counter()
        for _ in range(3):
            model(**inputs, use_cache=False, packed=True).loss.backward()
        print(f"forward and backward of the tiny model on the CPU: {1000 * (time.perf_counter() - started) / 3:.0f} ms")


def epoch(collator: Collator, examples: list[Example], rng: np.random.Generator) -> list[float]:
    order, times = rng.permutation(len(examples)), []
    for start in range(0, len(order), BATCH_SIZE):
        started = time.process_time()
        collator.training_batch([examples[int(at)] for at in order[start : start + BATCH_SIZE]])
        times.append(time.process_time() - started)
    return times


def question(number: int) -> str:
    return f"what sound do you hear {'first second third last loudest longest lowest highest'.split()[number % 8]}?"


def example(folder: Path, number: int) -> Example:
    path = folder / f"{number}.flac"
    seconds = SECONDS * (0.8 + 0.2 * (number % 10) / 10)
    soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(round(seconds * RATE_HZ)), RATE_HZ)
    asked = Message(role="user", content=[AudioPart(path=str(path)), TextPart(text=question(number))])
    return Example(id=str(number), messages=[asked, Message(role="assistant", content=f"a bell {number % 30}")])


if __name__ == "__main__":
    main()
