"""One process against two on the same global batches: the largest relative difference of the loss over a number of steps.

    python benchmarks/two_gpus.py                 # two GPUs: the shape of a 1B Llama, float32, LAL and PAL, DDP and FSDP2
    python benchmarks/two_gpus.py --tiny          # two processes on the CPU, to see that it runs

It starts one plain process, then two by torch.distributed.run, and writes what it prints to --out. Sound is composed here:
tones and noise, with answers of random words, so that the loss stays far from zero. Every fifth example has no sound.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, read_manifest, write_manifest
from pal_audio.model import ModelSpec, build_model
from pal_audio.training.loop import Record, StageRun
from pal_audio.training.objectives import AnswerObjective
from pal_audio.training.processes import join, leave
from pal_audio.training.recipe import Stage

RATE_HZ, BATCH_SIZE, ACCUMULATE = 16_000, 8, 2
WORDS = "low high long short bright dull rising falling near far".split()
LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
RATES = {"connector": 1e-3, "projector": 1e-4, "encoder": 1e-4, "llm": 2e-5}
ARMS, PARALLEL = ("lal", "pal"), ("ddp", "fsdp")
TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layers", type=int, help="of the language model; default 16, tiny 2")
    parser.add_argument("--tiny", action="store_true", help="a tiny model")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # a folder: what each started process does
    options = parser.parse_args()
    if options.worker is not None:
        work(options, options.worker)
        return
    passed = [f"--steps={options.steps}", *(["--tiny"] if options.tiny else [])]
    passed += [f"--layers={options.layers}"] if options.layers else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compose(folder, options.steps * BATCH_SIZE)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        for start in ([], launcher):
            subprocess.run([sys.executable, *start, __file__, "--worker", name, *passed], check=True)
        results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}
    report(results, options)


def compose(folder: Path, num_examples: int) -> None:
    rng = np.random.default_rng(0)
    examples = []
    for number in range(num_examples):
        parts: list[AudioPart | TextPart] = [TextPart(text="describe it in six words.")]
        if number % 5:
            seconds, pitch_hz = rng.uniform(0.5, 4.0), rng.uniform(80, 3000)
            time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
            wav_S = 0.3 * np.sin(2 * np.pi * pitch_hz * time_s) + 0.05 * rng.standard_normal(len(time_s))
            with wave.open(str(folder / f"{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE_HZ)
                file.writeframes((wav_S.clip(-1, 1) * 32767).astype("<i2").tobytes())
            parts.insert(0, AudioPart(path=f"{number}.wav"))
        answer = Message(role="assistant", content=" ".join(rng.choice(WORDS, rng.integers(2, 9))))
        examples.append(Example(id=str(number), messages=[Message(role="user", content=parts), answer]))
    write_manifest(folder / "examples.jsonl", examples)


class Once:
    """Every example once. The last step of the stage gets no batch: it would only write a checkpoint."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def from_step(self, first: int) -> Iterator[list[Example]]:
        for start in range(first * BATCH_SIZE, len(self.examples), BATCH_SIZE):
            yield self.examples[start : start + BATCH_SIZE]


def work(options: argparse.Namespace, folder: Path) -> None:
    everyone = join()
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    examples = read_manifest(folder / "examples.jsonl")
    for arm in ARMS:
        for parallel in PARALLEL if everyone.num > 1 else ("one",):
            records = train(arm, parallel, options, examples, folder)
            if everyone.is_main:
                row = {
                    "losses": [record.loss for record in records],
                    "seconds_per_step": float(np.median([record.seconds for record in records])),
                    "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
                }
                (folder / f"{arm}-{parallel}.json").write_text(json.dumps(row))
    leave()


def train(arm: str, parallel: str, options: argparse.Namespace, examples: list[Example], folder: Path) -> list[Record]:
    gc.collect()  # the model before, whose wrappers hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    shape: dict[str, Any] = (TINY if options.tiny else LLAMA_1B) | {
        "num_hidden_layers": options.layers or (2 if options.tiny else 16)
    }
    spec = ModelSpec(
        llm={"model_type": "llama", "tokenizer": {"vocab_size": 400}, "tie_word_embeddings": True, **shape},
        encoder={"type": "conv", "dropout": 0.0, "spec_augment": False},
        preset=arm,
    )
    torch.manual_seed(0)
    model, processor = build_model(spec, [message.text for example in examples for message in example.messages])
    stage = Stage(train=RATES, steps=options.steps + 1, accumulate=ACCUMULATE, warmup_steps=5, schedule="constant")
    run = StageRun(stage, 0, 0, folder / "none", "", parallel="fsdp" if parallel == "fsdp" else "ddp")
    objective = AnswerObjective(model, Collator(processor), stage)
    started = time.perf_counter()
    run.run(objective, Once(examples), options.steps + 1, resume=False)
    if join().is_main:
        print(f"{arm} {parallel}: {time.perf_counter() - started:.0f} s, loss {run.records[-1].loss:.4f}", flush=True)
    return run.records


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, gloo"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "accelerate": accelerate.__version__}
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        one = np.array(results[f"{arm}-one"]["losses"])
        for parallel in PARALLEL:
            two = np.array(results[f"{arm}-{parallel}"]["losses"])
            assert len(one) == len(two) == options.steps, (len(one), len(two))
            apart = np.abs(two - one) / np.abs(one)
            rows.append({"arm": arm, "parallel": parallel, "largest": float(apart.max()), "step": int(apart.argmax()) + 1})
            print(
                f"{arm} {parallel}: largest relative difference {apart.max():.2e} at step {apart.argmax() + 1} of {options.steps}"
            )
    content = {"device": device, "versions": versions, "tiny": options.tiny, "differences": rows, "runs": results}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{device}, {versions}; written to {options.out}")
    if any(not row["largest"] <= TOLERANCE for row in rows):
        sys.exit(f"a difference is above {TOLERANCE}")


if __name__ == "__main__":
    main()
