"""Training on live sound with and without worker processes: steps a second, and CPU time of the main process and the workers.

    OMP_NUM_THREADS=1 python benchmarks/reading_ahead.py [WORKERS ...]

Flac clips of 5 s, log-mel features of 80 bins, batches of 16, a tiny model; features are not kept, as where data are large.
"""

import multiprocessing.forkserver
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import soundfile
import torch

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.model import ModelSpec, build_model
from pal_audio.training.batches import BatchOrder, ExampleBatches, Size
from pal_audio.training.inputs import step_inputs
from pal_audio.training.objectives import AnswerObjective
from pal_audio.training.processes import Processes
from pal_audio.training.recipe import Stage

NUM_CLIPS, BATCH_SIZE, SECONDS, RATE_HZ, STEPS = 64, 16, 5, 16_000, 24
ENCODER = {
    "type": "conv",
    "hidden_size": 32,
    "channels": [8, 16],
    "time_strides": [4, 2],
    "num_layers": 1,
    "num_heads": 2,
    "num_mels": 80,
}
LLM = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def main() -> None:
    torch.manual_seed(0)
    spec = ModelSpec(llm=LLM | {"tokenizer": {"vocab_size": 300}}, encoder=ENCODER, preset="lal")
    model, processor = build_model(spec, ["what sound is this? a bell"])
    stage = Stage(train={"connector": 1e-3}, steps=STEPS, batch_size=BATCH_SIZE)
    objective = AnswerObjective(model, Collator(processor, keep_bytes=0), stage)
    objective.parameter_groups()
    with tempfile.TemporaryDirectory() as name:
        examples = [example(Path(name), number) for number in range(NUM_CLIPS)]
        batches = ExampleBatches(examples, BatchOrder([Size(SECONDS) for _ in examples], BATCH_SIZE, 0))
        for num in [int(word) for word in sys.argv[1:]] or [0, 2]:
            measure(num, objective, batches)


def measure(num: int, objective: AnswerObjective, batches: ExampleBatches) -> None:
    started = time.perf_counter()
    inputs = step_inputs(objective, batches, range(STEPS + 1), 1, num, Processes(), torch.device("cpu"))
    with closing(inputs):
        next(inputs)
        first, main_s, workers_s, began = time.perf_counter() - started, time.process_time(), workers_cpu_s(), time.perf_counter()
        waited = 0.0
        for _ in range(STEPS):
            asked = time.perf_counter()
            ((batch, _),), num_units = next(inputs)
            waited += time.perf_counter() - asked
            objective.loss(objective.module, batch, num_units).backward()
        wall = time.perf_counter() - began
        main_s, workers_s = time.process_time() - main_s, workers_cpu_s() - workers_s
    print(f"{num} workers: first batch after {first:.1f} s, then {STEPS / wall:.2f} steps/s (load {os.getloadavg()[0]:.1f})")
    for what, taken in (("wall", wall), ("waiting for the batch", waited), ("CPU, main", main_s), ("CPU, workers", workers_s)):
        print(f"    {what}: {1000 * taken / STEPS:.0f} ms a step")


def workers_cpu_s() -> float:
    """CPU time of the children of the fork server."""
    server, ticks = multiprocessing.forkserver._forkserver._forkserver_pid, 0  # type: ignore[attr-defined]
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if server is not None and int(fields[1]) == server:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def example(folder: Path, number: int) -> Example:
    path = folder / f"{number}.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(SECONDS * RATE_HZ), RATE_HZ)
    asked = Message(role="user", content=[AudioPart(path=str(path)), TextPart(text="what sound is this?")])
    return Example(id=str(number), messages=[asked, Message(role="assistant", content="a bell")])


if __name__ == "__main__":
    main()
