"""The three-stage curriculum end to end on real recordings, with random weights: what each stage costs for each arm.

    python benchmarks/curriculum.py DATA --out results                # the shape of a 1B Llama, on a GPU
    python benchmarks/curriculum.py DATA --out results --tiny         # two layers of width 32, on a CPU

DATA holds `esc10` and `fsdd` in their official layouts. Stage 1 learns classes of sounds, stage 2 spoken digits beside them,
stage 3 captions of scenes too; each arm is `pal train` on its shipped recipe with another LLM and encoder, all else as shipped.
Scores mean nothing here: the LLM starts from random weights, and the weights of a run are removed when its rows are read.
"""

import argparse
import json
import platform
import shutil
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pal_audio.data import MixConfig, build, import_set, read_manifest, write_manifest
from pal_audio.training.run import train

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("plits", "lal", "pal", "lal-frozen-ffn", "lal-frozen-llm")
LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "tokenizer": {"vocab_size": 1000},
}  # fmt: skip
TINY = LLAMA_1B | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "tokenizer": {"vocab_size": 400},
}  # fmt: skip
CONV = {"type": "conv", "hidden_size": 512, "frozen": True, "spec_augment": False}
TINY_CONV = {"type": "conv", "num_mels": 16, "channels": [4, 8], "time_strides": [4, 2], "hidden_size": 16, "num_layers": 1,
             "num_heads": 2, "frozen": True, "spec_augment": False}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--steps", type=int, default=30, help="of each stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    manifests = compose(options.data.resolve(), options.out / "data", 24 if options.tiny else 400)
    rows: list[dict[str, Any]] = []
    for arm in options.arms.split(","):
        rows += run_arm(arm, options, manifests)
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    header = {"command": " ".join(sys.argv[1:]), "device": device, "python": platform.python_version(), **versions}
    (options.out / "curriculum.json").write_text(json.dumps({**header, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"{device}, {versions}")
    print("arm             stage            step       peak first loss  last loss")
    for row in rows:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB"
        print(
            f"{row['arm']:15s} {row['stage']:10s} {row['step_s'] * 1e3:8.1f} ms {peak:>10s} "
            f"{row['first_loss']:10.3f} {row['last_loss']:10.3f}"
        )


def compose(data: Path, out: Path, num_scenes: int) -> dict[str, Path]:
    """Manifests of the three sources and of the held-out examples, by name."""
    paths = {name: out / f"{name}.jsonl" for name in ("classification", "closed", "open", "test")}
    if all(path.is_file() for path in paths.values()):
        return paths
    out.mkdir(parents=True, exist_ok=True)
    import_set("esc50", data / "esc10", out / "esc10")
    import_set("fsdd", data / "fsdd", out / "fsdd")
    settings = {"num_train": num_scenes, "num_test": 8, "scene": {"seconds": 5, "num_events": [1, 3]}, "tasks": {"caption": 1}}
    sources = [{"type": "esc10", "root": "esc10"}]
    scenes = MixConfig.model_validate({"type": "mix", "root": str(data), "sources": sources, **settings})
    train_path, test_path = build(scenes, out / "scenes")
    write_manifest(paths["classification"], read_manifest(out / "esc10" / "train.jsonl", [data]))
    write_manifest(paths["closed"], read_manifest(out / "fsdd" / "train.jsonl", [data]))
    write_manifest(paths["open"], read_manifest(train_path))
    held_out = read_manifest(out / "esc10" / "val.jsonl", [data])[:16] + read_manifest(test_path)
    write_manifest(paths["test"], held_out)
    return paths


def run_arm(arm: str, options: argparse.Namespace, manifests: dict[str, Path]) -> list[dict[str, Any]]:
    """One run; a row for each stage."""
    changes: dict[str, Any] = {
        "model.llm": TINY if options.tiny else LLAMA_1B,
        "model.encoder": TINY_CONV if options.tiny else CONV,
        "precision": "float32" if options.tiny else "bfloat16",
        "data.roots": [str(options.data.resolve()), str(options.out.resolve())],
        "data.test.0": str(manifests["test"]),
    }
    for number, name in enumerate(("classification", "closed", "open")):
        changes[f"data.train.{number}.path"] = str(manifests[name])
    for number in range(3):
        batch_size = 4 if options.tiny else options.batch_size
        changes |= {f"stages.{number}.epochs": None, f"stages.{number}.steps": options.steps, f"stages.{number}.warmup_steps": 5}
        changes |= {f"stages.{number}.batch_size": batch_size, f"stages.{number}.save_every": 10_000}
    recipe = ROOT / "recipes" / f"curriculum-llama-3.2-1b-{arm}.yaml"
    out = options.out / arm
    started = time.perf_counter()
    train(recipe, [f"{key}={json.dumps(value)}" for key, value in changes.items()], out, overwrite=True)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = []
    for name in dict.fromkeys(row["stage"] for row in log):
        stage = [row for row in log if row["stage"] == name]
        timed = [row["seconds"] for row in stage[5:] or stage]
        peaks = [row["peak_bytes"] for row in stage if row.get("peak_bytes")]
        row = {"arm": arm, "stage": name, "steps": len(stage), "step_s": statistics.median(timed)}
        row |= {"peak_bytes": max(peaks) if peaks else None, "first_loss": stage[0]["loss"], "last_loss": stage[-1]["loss"]}
        rows.append(row | {"run_s": time.perf_counter() - started})
    for folder in [*out.glob("checkpoints-*"), out / "final"]:
        shutil.rmtree(folder)
    return rows


if __name__ == "__main__":
    main()
