"""benchmarks/peers.py on the CPU: transformers' classes take rows as long as ours, learn and generate."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pal_audio.bench import shapes
from pal_audio.bench.case import Case, Setup
from pal_audio.errors import PalError

FILE = Path(__file__).parents[2] / "benchmarks" / "peers.py"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module
    spec.loader.exec_module(module)
    return module


def test_every_class_learns_and_generates(peers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--llm tiny-qwen2 --encoder tiny-whisper --batch 2 --audio-tokens 25 --text-tokens 12 --precision float32"
    rows = peers.main([*arguments.split(), "--steps", "1", "--warmup", "1", "--new-tokens", "2", "--out", str(tmp_path)])
    assert [row["name"] for row in rows] == ["qwen2_audio", "audioflamingo3", "voxtral", "pal plits", "pal lal"]
    for row in rows:
        assert row["error"] is None, row
        assert row["step_s"] > 0
        assert 4 < row["first_loss"] < 8
    assert "qwen2_audio" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "peers.json").read_text())["rows"]) == 5


def test_the_llm_and_the_row_are_ours(peers: ModuleType) -> None:
    case = Case(setup=Setup(llm="tiny-llama", encoder="tiny-whisper", precision="float32"), integration="plits", batch=2,
                audio_tokens=25, text_tokens=12)  # fmt: skip
    for peer in peers.PEERS:
        model: Any = peers.build(peer, case, torch.device("cpu"))
        layers = [parameter for name, parameter in model.named_parameters() if "language_model" in name and ".layers." in name]
        llm = case.llm
        assert sum(parameter.numel() for parameter in layers) == llm.num_layers * (llm.layer_products + 2 * llm.hidden_size)
        assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "audio_tower" in name)
        is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert is_tied == shapes.LLMS["tiny-llama"]["tie_word_embeddings"]
        inputs = peers.inputs_of(peer, case, torch.device("cpu"))
        assert inputs["input_ids"].shape == (2, 12 + 25)
        with torch.no_grad():
            assert model(**inputs).logits.shape == (2, 37, 300), "so many audio features fit the placeholders"
        with pytest.raises(PalError, match="do not fill windows"):
            peers.inputs_of(peer, case.model_copy(update={"audio_tokens": 24}), torch.device("cpu"))


def test_a_class_that_fails_ends_it_with_a_status(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(peers, "measure_peer", fails)
    monkeypatch.setattr(
        peers, "measure_ours", lambda *_: {"step_s": 1.0, "peak_bytes": 1, "weights_bytes": 1, "rest_bytes": 1, "token_s": 1.0}
    )
    with pytest.raises(SystemExit, match="3 of 5 failed, the first is qwen2_audio"):
        peers.main("--llm tiny-llama --encoder tiny-whisper".split())


def test_an_unknown_llm_is_named_in_a_line(peers: ModuleType) -> None:
    with pytest.raises(PalError, match="llm 'nope' is unknown"):
        peers.main(["--llm", "nope"])
