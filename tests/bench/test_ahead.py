"""`--compile-ahead`: what a process compiled is found by the one that measures, and nothing else depends on it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio import cli
from pal_audio.bench import ahead
from pal_audio.bench.ahead import compile_ahead, compiles
from pal_audio.bench.case import Case, Setup
from pal_audio.bench.store import Store

CPU = torch.device("cpu")
# Its standard input is that of a process that compiles; then it tells what torch's cache gave.
TELLS = """
from torch._dynamo.utils import counters
from pal_audio.bench.ahead import main
main()
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def case(integration: str = "text", extra: dict[str, Any] | None = None, **setup: Any) -> Case:
    settings = Setup(llm="tiny-llama", precision="float32", **setup)
    return Case(setup=settings, integration=integration, batch=1, audio_tokens=4, text_tokens=8, extra=extra or {})


def test_the_measuring_process_finds_what_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    one, plain, wrong = case(compile="model"), case(), case("plits", compile="model", kernel="no-such-kernel")
    said: list[str] = []
    assert compile_ahead("train", [plain, one, wrong], CPU, 2, said.append) == [one]
    assert len(said) == 2, "what has nothing to compile is left out"
    assert any("compiled in" in line and line.startswith("text") for line in said)
    assert any("not compiled ahead: " in line and "no-such-kernel" in line for line in said)
    asked = json.dumps({"verb": "train", "case": one.model_dump(mode="json"), "device": "cpu"})
    told = subprocess.run([sys.executable, "-c", TELLS], input=asked, capture_output=True, text=True, check=True)
    hits, misses = map(int, told.stdout.split()[-2:])
    assert hits > 0
    assert misses == 0


def test_what_compiles() -> None:
    assert not compiles(case())
    assert compiles(case(compile="step"))
    assert compiles(case(optimizer="compiled"))
    assert compiles(case(extra={"decode": "compiled-matmul"}))
    assert not compiles(case(extra={"decode": "loop"}))


def test_only_what_will_be_measured_is_compiled(tmp_path: Path) -> None:
    groups = [[case(), case("plits"), case("lal")], [case(), case("plits"), case("pal")]]
    header = {
        "run": "now",
        "hardware": {"device": "cpu", "torch": "1", "cuda": "", "transformers": "", "python": "", "pal_audio": "", "commit": ""},
    }
    store = Store(tmp_path, "train", header)
    assert [one.integration for one in store.missing(groups)] == ["text", "plits", "lal", "pal"], "each once"
    for one in groups[0]:
        store.add(one, {"error": None, "compared": []})
    assert [one.integration for one in store.missing(groups)] == ["text", "plits", "pal"], "a group is measured in one run"
    for one in groups[1]:
        store.add(one, {"error": None, "compared": []})
    assert store.missing(groups) == []


def test_the_option_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(
        ahead, "compile_ahead", lambda verb, cases, device, processes, say: asked.append((verb, cases, processes))
    )
    words = [
        "--llm",
        "tiny-llama",
        "--encoder",
        "frames",
        "--audio-tokens",
        "4",
        "--batch",
        "1",
        "--integrations",
        "lal",
        "--out",
    ]
    sizes = ["--precision", "float32", "--compile-ahead", "3"]
    assert cli.main(["bench", "train", *words, str(tmp_path / "train"), *sizes, "--steps", "1", "--warmup", "1"]) == 0
    assert cli.main(["bench", "infer", *words, str(tmp_path / "infer"), *sizes, "--new-tokens", "1", "--repeats", "1"]) == 0
    assert [(verb, len(cases), processes) for verb, cases, processes in asked] == [("train", 3, 3), ("infer", 3, 3)]
