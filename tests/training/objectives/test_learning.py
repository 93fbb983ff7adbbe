"""Each objective from recipe to finished run: its loss falls, its held-out score beats chance, what it leaves is used."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pal_audio import encoders
from pal_audio.data.encoder_identity import EncoderIdentity
from pal_audio.model import load
from pal_audio.training.run import train
from tests.encoders.cases import CASES
from tests.training.objectives.made import ENCODER, LLM, example, losses, manifest, recipe, scores, spelt, texts


def test_tags_of_one_label(tmp_path: Path) -> None:
    def clips(name: str, num: int) -> str:
        letters = "abc" * num
        return manifest(
            tmp_path, name, [example(tmp_path, f"{name}-{i}", s, f"{s.upper()}!", i, "name") for i, s in enumerate(letters)]
        )

    stage = {"objective": "tags", "task": "name", "train": {"encoder": 3e-3}, "steps": 40, "pooling": "attention"}
    run = train(recipe(tmp_path, {"encoder": ENCODER}, [clips("train", 8)], [clips("test", 4)], stage), out=tmp_path / "run")
    assert sum(losses(run)[-5:]) < 0.5 * sum(losses(run)[:5])
    (score,) = scores(run)
    assert score["num"] == 12
    assert score["chance"] == pytest.approx(1 / 3)
    assert score["accuracy"] > 0.9
    assert not (run / "final").exists()  # there is no model to ask
    report = (run / "report.md").read_text()
    assert "| stage0 | tags | accuracy | " in report
    assert "answers" not in report

    # A later recipe reads it: sizes come with the folder, the frame cache knows it, and the weights are those that were trained.
    config = encoders.parse({"type": "conv", "checkpoint": str(run / "encoders" / "audio"), "frozen": True})
    assert config.frame_size == 16
    encoder = encoders.build(config)
    stored = load_file(run / "checkpoints-0" / "00000040" / "model.safetensors")
    assert {name for name in stored if name.startswith("head.")} == {
        f"head.{x}" for x in ("weight.weight", "weight.bias", "out.weight", "out.bias")
    }
    assert all(torch.equal(tensor, stored[f"encoder.{name}"]) for name, tensor in encoder.state_dict().items())
    assert EncoderIdentity.of(encoder) == EncoderIdentity.of(encoders.build(config))


def test_tags_of_any_number(tmp_path: Path) -> None:
    def clips(name: str) -> str:
        letters = [s for s in ("a", "b", "c", "ab", "ba", "bc", "ca", "abc") for _ in range(3)]
        return manifest(
            tmp_path, name, [example(tmp_path, f"{name}-{i}", s, None, i, labels=sorted(s)) for i, s in enumerate(letters)]
        )

    stage = {"objective": "tags", "train": {"encoder": 3e-3, "head": 1e-2}, "steps": 60}
    run = train(recipe(tmp_path, {"encoder": ENCODER}, [clips("train")], [clips("test")], stage), out=tmp_path / "run")
    assert sum(losses(run)[-5:]) < 0.7 * sum(losses(run)[:5])
    (score,) = scores(run)
    assert score["num_labels"] == 3
    assert score["map"] > score["chance"] + 0.2
    rates = json.loads((run / "log.jsonl").read_text().splitlines()[0])["learning_rates"]
    assert rates == {"encoder": 3e-3, "head": 1e-2}


@pytest.mark.parametrize("symbols", [None, "words"])
def test_ctc(tmp_path: Path, symbols: str | None) -> None:
    stage = {"objective": "ctc", "train": {"encoder": 5e-3}, "steps": 150, "symbols": symbols, "schedule": "cosine"}
    data = [spelt(tmp_path, "train", 64, 0)], [spelt(tmp_path, "test", 16, 1)]
    if symbols == "words":  # "a b a" instead of "aba"
        for file in (*data[0], *data[1]):
            rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
            for row in rows:
                row["meta"]["transcript"] = " ".join(row["messages"][-1]["content"].strip("."))
            Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(recipe(tmp_path, {"encoder": ENCODER}, *data, stage), out=tmp_path / "run")
    assert sum(losses(run)[-5:]) < 0.3 * sum(losses(run)[:5])
    (score,) = scores(run)
    assert score["cer"] < 0.3  # an empty answer has 1, the best single letter about 0.8
    assert (run / "encoders" / "audio" / "config.json").is_file()


def test_text_then_sound(tmp_path: Path) -> None:
    """A language model of its own tokenizer, held-out perplexity, and a second recipe that stands on it."""
    stage = {"objective": "text", "train": {"llm": 3e-3}, "steps": 60}
    sources = [{"text": texts(tmp_path / "train.txt", 60, 0)}]
    held_out = [{"text": texts(tmp_path / "test.txt", 10, 1)}]
    run = train(recipe(tmp_path, {"llm": LLM}, sources, held_out, stage), out=tmp_path / "lm")
    assert sum(losses(run)[-5:]) < 0.5 * sum(losses(run)[:5])
    (score,) = scores(run)
    assert score["documents.perplexity"] < 10  # of about 300 tokens
    assert score["documents.bits_per_character"] < 1
    assert "documents.bits_per_character" in (run / "report.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(run / "llm")
    assert len(tokenizer("the cat sits on my house")["input_ids"]) <= 6  # it has learnt these words, not bytes alone
    llm = AutoModelForCausalLM.from_pretrained(run / "llm", use_safetensors=True)
    stored = load_file(run / "checkpoints-0" / "00000060" / "model.safetensors")
    assert all(torch.equal(tensor, stored[f"language_model.{name}"]) for name, tensor in llm.named_parameters())

    folder = tmp_path / "second"
    folder.mkdir()
    model = {"llm": str(run / "llm"), "preset": "pal", "encoder": ENCODER, "summary": {"type": "pool", "num_tokens": 2}}
    stage = {"train": {"connector": 1e-3, "projector": 1e-3}, "steps": 2}
    path = recipe(folder, model, [spelt(folder, "train", 8, 0)], [spelt(folder, "test", 2, 1)], stage)
    heard, _ = load(train(path, out=folder / "run") / "final")
    own = dict(heard.language_model.named_parameters())
    assert all(torch.equal(tensor, own[name]) for name, tensor in llm.named_parameters())


def test_text_and_tags_within_a_whole_model(tmp_path: Path) -> None:
    """A tag stage trains one of two encoders, a text stage the LLM, an answer stage the rest: each exactly its part."""
    stream = {"connector": {"type": "mlp", "stride": 4}, "integration": {"type": "plits"}}
    model = {
        "llm": LLM,
        "encoders": {"ear": ENCODER, "eye": ENCODER},
        "streams": [{"encoder": "ear", **stream}, {"encoder": "eye", **stream, "integration": {"type": "lal"}}],
    }
    stages = (
        {"objective": "tags", "encoder": "eye", "task": "spell", "train": {"encoder": 1e-3}, "steps": 2, "sources": ["train"]},
        {"objective": "text", "train": {"llm": 1e-3}, "steps": 2},
        {"objective": "answer", "train": {"connector": 1e-3}, "steps": 2, "sources": ["train"]},
    )
    sources = [spelt(tmp_path, "train", 8, 0), {"text": texts(tmp_path / "words.txt", 8, 0)}]
    test = [spelt(tmp_path, "test", 4, 0), {"text": texts(tmp_path / "more.txt", 4, 0)}]
    run = train(recipe(tmp_path, model, sources, test, *stages), out=tmp_path / "run")
    of_tags, of_text, of_answer = (load_file(run / f"checkpoints-{n}" / "00000002" / "model.safetensors") for n in range(3))
    assert all(
        torch.equal(tensor, of_text[name.replace("encoder.", "encoders.eye.", 1)])
        for name, tensor in of_tags.items()
        if name[:5] != "head."
    )
    changed = {name for name in of_text if not torch.equal(of_text[name], of_answer[name])}
    assert changed
    assert all(name == "marker" or ".connector." in name for name in changed)
    tag_scores, text_scores = scores(run)
    assert set(tag_scores) == {"accuracy", "chance", "num"}
    assert {name.partition(".")[0] for name in text_scores} == {"documents", "conversations"}
    assert json.loads((run / "scores.json").read_text())["num"] == 4  # the texts are no questions
    assert sorted(path.name for path in (run / "encoders").iterdir()) == ["eye"]
    assert (run / "final" / "config.json").is_file()
    assert (run / "llm" / "config.json").is_file()
    assert AutoModelForCausalLM.from_pretrained(run / "llm").config._attn_implementation == "sdpa"


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_merged_into_the_llm_that_is_left(tmp_path: Path, whole: bool) -> None:
    """With streams and without: the folder has plain weights, and gives the logits of base and adapter together."""
    streams = {"preset": "lal", "encoder": ENCODER} if whole else {}
    stage = {"objective": "text", "train": {"llm.adapter": 1e-2}, "steps": 3}
    words = [{"text": texts(tmp_path / "a.txt", 8, 0)}]
    path = recipe(tmp_path, {"llm": LLM, **streams}, words, words, stage, adapter={"type": "lora", "dropout": 0.0})
    run = train(path, out=tmp_path / "run")
    stored = load_file(run / "checkpoints-0" / "00000003" / "model.safetensors")
    llm = AutoModelForCausalLM.from_pretrained(run / "llm")
    name = "model.layers.0.self_attn.q_proj"
    base, down, up = (
        stored[f"language_model.{name}.{key}"] for key in ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    )
    assert up.abs().max() > 0
    torch.testing.assert_close(llm.get_parameter(f"{name}.weight").data, base + 16 / 8 * up @ down)
    assert not any("lora" in key for key in load_file(run / "llm" / "model.safetensors"))
    assert (run / "final").exists() == whole
    if whole:
        assert load(run / "final")[0].config.adapter is not None


@pytest.mark.parametrize("objective", ["text", "ctc", "tags"])
def test_in_bfloat16(tmp_path: Path, objective: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    words = [{"text": texts(tmp_path / "a.txt", 8, 0)}]
    data = (words, words) if objective == "text" else ([spelt(tmp_path, "train", 8, 0)], [spelt(tmp_path, "test", 8, 0)])
    part = "llm" if objective == "text" else "encoder"
    stage = {"objective": objective, "train": {part: 1e-3}, "steps": 2} | ({"task": "spell"} if objective == "tags" else {})
    model = {"llm": LLM} if objective == "text" else {"encoder": ENCODER}
    run = train(recipe(tmp_path, model, *data, stage, precision="bfloat16"), out=tmp_path / "run")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert scores(run)
    assert all(torch.isfinite(torch.tensor(losses(run))))
    stored = load_file(next((run / ("llm" if objective == "text" else "encoders/audio")).glob("*.safetensors")))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["whisper", "ast", "wav2vec2-layer"])
def test_an_encoder_of_each_kind_trains_and_is_read_frozen_by_the_next_recipe(tmp_path: Path, kind: str) -> None:
    """Two steps change the weights; the next run's encoder has exactly these and keeps them."""
    stage = {"objective": "ctc", "train": {"encoder": 1e-3}, "steps": 2}
    data = [spelt(tmp_path, "train", 8, 0)], [spelt(tmp_path, "test", 4, 1)]
    run = train(recipe(tmp_path, {"encoder": CASES[kind]}, *data, stage), out=tmp_path / "run")
    first, second = (load_file(run / "checkpoints-0" / "00000002" / "model.safetensors"), run / "encoders" / "audio")
    model = {"llm": LLM, "preset": "lal", "encoder": {"type": CASES[kind]["type"], "checkpoint": str(second), "frozen": True}}
    stage = {"train": {"connector": 1e-3}, "steps": 2}
    heard, _ = load(train(recipe(tmp_path, model, *data, stage), out=tmp_path / "next") / "final")
    stored = heard.encoders["audio"].state_dict()
    assert all(torch.equal(tensor, first[f"encoder.{name}"]) for name, tensor in stored.items())
