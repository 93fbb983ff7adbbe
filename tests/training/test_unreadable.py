"""A clip that turns out damaged while a run trains: a clear end, and a way on without it."""

from pathlib import Path

import pytest
import soundfile
import torch
from rich.console import Console

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, write_manifest
from pal_audio.errors import PalError
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.tiny import RATE_HZ, noise, tiny_model


def write_examples(folder: Path, name: str, num: int) -> list[Example]:
    examples = []
    for number in range(num):
        file = folder / f"{name}-{number}.flac"
        soundfile.write(file, noise(0.4, seed=number), RATE_HZ)
        question = [AudioPart(path=str(file)), TextPart(text="what sound is this?")]
        answer = Message(role="assistant", content=("a bell", "a dog")[number % 2])
        examples.append(Example(id=file.stem, messages=[Message(role="user", content=question), answer], task="name"))
    write_manifest(folder / f"{name}.jsonl", examples)
    return examples


def spoil(path: str) -> None:
    """Keep the header, which planning reads, and nothing that decodes."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:90] + bytes(len(content) - 90))


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    examples = write_examples(tmp_path, "train", 8)
    write_examples(tmp_path, "test", 2)
    spoil(examples[3].audio[0].path)
    return [
        f"data={{type: manifests, train: [{tmp_path / 'train.jsonl'}], test: [{tmp_path / 'test.jsonl'}]}}",
        "stages.0.save_every=1",
    ]


def test_a_damaged_clip_ends_a_run_that_goes_on_without_it(recipe: Path, tmp_path: Path, settings: list[str]) -> None:
    out = tmp_path / "run"
    with pytest.raises(PalError, match=r"train-3.flac.*--resume --set unreadable_clips=skip"):
        train(recipe, settings, out)
    console = Console(record=True, width=400)
    with pytest.warns(UserWarning, match=r"train-3.flac.*teaches nothing"):
        train(recipe, [*settings, "unreadable_clips=skip"], out, resume=True, console=console)
    assert (out / "finished.json").is_file()
    assert "left out:" in console.export_text()


def test_what_cannot_be_read_teaches_nothing(tmp_path: Path) -> None:
    model, processor = tiny_model("llama", "pal")
    good, bad = write_examples(tmp_path, "clip", 2)
    spoil(bad.audio[0].path)
    collator = Collator(processor, skip_unreadable=True)
    with pytest.warns(UserWarning, match="teaches nothing"):
        mixed = collator.training_batch([good, bad])
    assert (mixed["labels"][1] == -100).all()
    assert (mixed["labels"][0] >= 0).any()
    with torch.no_grad():
        alone = model(**collator.training_batch([good]), packed=True).loss
        torch.testing.assert_close(model(**mixed, packed=True).loss, alone)
    nothing = model(**collator.training_batch([bad]), packed=True, num_items_in_batch=1).loss
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_skipping_is_for_answers(recipe: Path) -> None:
    with pytest.raises(PalError, match="is for stages with objective answer; this recipe has tags"):
        load_recipe(recipe, ["unreadable_clips=skip", "stages.1.objective=tags"])
