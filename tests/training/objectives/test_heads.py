"""`ctc` and `tags` in detail: targets, what is refused, lengths, and the losses against torch's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pal_audio import encoders
from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example, Message, read_manifest
from pal_audio.encoders.base import Frames
from pal_audio.errors import PalError
from pal_audio.model.parts import Parts, PartsProcessor
from pal_audio.training.objectives import OBJECTIVES
from pal_audio.training.objectives.encoder import HeadedEncoder
from pal_audio.training.objectives.tags import TagsHead
from pal_audio.training.recipe import Stage
from tests.training.objectives.made import ENCODER, example, manifest


def objective(kind: str, encoder: dict[str, Any] | None = None, **stage: Any) -> Any:
    torch.manual_seed(0)
    config = encoders.parse({**ENCODER, **(encoder or {})})
    model = Parts(None, {"audio": encoders.build(config)})
    made = Stage(**{"objective": kind, "train": {"encoder": 1e-3}, "steps": 1, **stage})  # type: ignore[arg-type]
    return OBJECTIVES[kind](model, Collator(PartsProcessor(None, {"audio": config})), made)  # type: ignore[arg-type]


def read(folder: Path, *examples: Example) -> list[Example]:
    return read_manifest(manifest(folder, "m", list(examples)))


def test_ctc_targets_and_decoding(tmp_path: Path) -> None:
    items = read(tmp_path, example(tmp_path, "1", "ab", "Well,  A-B!"), example(tmp_path, "2", "cab", "x", transcript="to be"))
    by_letter, by_word = objective("ctc"), objective("ctc", symbols="words")
    assert ["".join(by_letter.target(item)) for item in items] == ["well ab", "to be"]
    by_word.prepare(items, items)
    assert by_word.symbols == ["ab", "be", "to", "well"]
    scores_TV = nn.functional.one_hot(torch.tensor([0, 3, 3, 0, 2, 2, 2, 0, 2]), 5).float()
    assert by_word.decode(scores_TV) == "to be be"


def test_ctc_loss_is_torchs_of_each_clip_alone(tmp_path: Path) -> None:
    """Clips of one window and of several, padded together, against one by one without padding."""
    items = read(
        tmp_path, example(tmp_path, "1", "a", "a"), example(tmp_path, "2", "abcab", "abcab"), example(tmp_path, "3", "bb", "bb")
    )
    made = objective("ctc", {"window_s": 0.5})
    made.prepare(items, items)
    made.module.eval()
    inputs = made.inputs(items)
    assert made.num_units(inputs) == 8
    expected = 0.0
    for item in items:
        sound = made.sound([item])
        scores_TV = made.module(**sound)[0][0]
        assert len(scores_TV) == made.encoder.config.output_lengths(int(sound["num_samples"]))
        target = torch.tensor(["abc".index(letter) + 1 for letter in item.answer or ""])
        loss = nn.CTCLoss(reduction="sum")
        expected += float(loss(scores_TV.log_softmax(-1)[:, None], target[None], (len(scores_TV),), (len(target),)).detach())
    assert float(made.loss(made.module, inputs, 8).detach()) == pytest.approx(expected / 8, rel=1e-5)


def test_a_text_longer_than_its_clip_is_named(tmp_path: Path) -> None:
    """0.4 s are 10 frames of 40 ms; ten equal letters need 19."""
    fits, short = example(tmp_path, "fits", "a", "abcdefghij"), example(tmp_path, "short", "a", "aaaaaaaaaa")
    items = read(tmp_path, fits, short, example(tmp_path, "shorter", "a", "abcdefghijk"))
    made = objective("ctc")
    made.prepare(items[:1], items)
    with pytest.raises(PalError, match="2 examples have fewer frames than their text needs, the first is 'short'"):
        objective("ctc").prepare(items, items)
    made._index |= {"k": 1}
    with pytest.raises(PalError, match="example 'shorter'"):  # a header that promised more than there is
        made.inputs(items[2:])


def test_pooling_sees_a_clips_own_frames_alone() -> None:
    torch.manual_seed(0)
    frames_CTD, lengths_C = torch.randn(2, 6, 4), torch.tensor([6, 2])
    for attention in (False, True):
        head = TagsHead(4, 3, attention)
        together = head(frames_CTD, lengths_C)
        torch.testing.assert_close(together[1], head(frames_CTD[1:, :2], lengths_C[1:])[0])
        if not attention:
            torch.testing.assert_close(together[1], head.out(frames_CTD[1, :2].mean(0)))
    assert together[0].isfinite().all()


def test_one_label_and_many(tmp_path: Path) -> None:
    one = read(tmp_path, example(tmp_path, "1", "a", "A!"), example(tmp_path, "2", "b", "no", label="b"))
    made = objective("tags", task="spell")
    made.prepare(one, one)
    assert made.names == ["a", "b"]
    inputs = made.inputs(one)
    scores_CV = made.module(inputs["features"], inputs["num_samples"])[0]
    expected = nn.functional.cross_entropy(scores_CV, torch.tensor([0, 1]))
    torch.testing.assert_close(made.loss(made.module, inputs, 2), expected)
    many = read(tmp_path, example(tmp_path, "1", "a", None, labels=["a", "b"]), example(tmp_path, "2", "b", None, labels=[]))
    made = objective("tags")
    made.prepare(many, many)
    inputs = made.inputs(many)
    assert inputs["targets"].tolist() == [[1, 1], [0, 0]]
    scores_CV = made.module(inputs["features"], inputs["num_samples"])[0]
    expected = nn.functional.binary_cross_entropy_with_logits(scores_CV, inputs["targets"])
    torch.testing.assert_close(made.loss(made.module, inputs, 2), expected)


def test_scores_have_no_dropout_in_them(tmp_path: Path) -> None:
    items = read(tmp_path, example(tmp_path, "1", "a", "A!"), example(tmp_path, "2", "bc", "B"))
    made = objective("tags", {"dropout": 0.5}, task="spell")
    made.prepare(items, items)
    made.module.train()
    once, again = (torch.stack([row for _, row in made.outputs(items)]) for _ in range(2))
    assert torch.equal(once, again)


def test_what_cannot_be_learnt_is_named(tmp_path: Path) -> None:
    good, other = example(tmp_path, "good", "a", "a", label="a"), example(tmp_path, "other", "b", "b", label="b")
    mute = Example(id="mute", messages=[Message(role="user", content="?"), Message(role="assistant", content="a")], task="spell")
    cases: list[tuple[str, dict[str, Any], list[Example], str]] = [
        ("ctc", {}, [good, mute], "'mute' has 0 clips; one is needed"),
        ("ctc", {"task": "sing"}, [good], "no training example has task 'sing'; there are spell"),
        ("ctc", {}, [good, example(tmp_path, "dots", "a", "...")], "'dots' has no text to learn"),
        ("ctc", {}, [good, example(tmp_path, "odd", "a", "a", transcript=3)], "'odd': meta.transcript is int, not str"),
        (
            "tags",
            {},
            [good, example(tmp_path, "bare", "a", "a")],
            "'bare' has no label; give it meta.label or meta.labels, or name",
        ),
        ("tags", {}, [good, example(tmp_path, "many", "a", "a", labels=["a"])], "'good' and 'many' differ"),
        ("tags", {}, [example(tmp_path, "n", "a", "a", labels=[1])], "meta.labels must be a list of strings"),
        ("tags", {}, [good], "have 1 labels; at least 2"),
    ]
    for kind, stage, examples, words in cases:
        items = read(tmp_path, *examples)
        with pytest.raises(PalError, match=words):
            objective(kind, **stage).prepare(items, items)
    train, test = read(tmp_path, good, other), read(tmp_path, example(tmp_path, "new", "c", "c", label="c"))
    with pytest.raises(PalError, match="no held-out example has a label of the training examples"):
        objective("tags").prepare(train, test)
    with pytest.raises(PalError, match="encoder 'audio' says frozen: true"):
        objective("tags", {"frozen": True})


def test_only_the_named_encoder_and_its_head_train() -> None:
    torch.manual_seed(0)
    made = objective("tags", train={"encoder": 1e-3, "head": 3e-3})
    made.module = nn.Module()
    made.module.head = TagsHead(16, 2, True)
    other = encoders.build(encoders.parse(ENCODER))
    made.model.encoders["other"] = other
    groups = made.parameter_groups()
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    trained = [*made.encoder.parameters(), *made.module.head.parameters()]
    assert grouped == {id(parameter) for parameter in trained}
    assert all(parameter.requires_grad for parameter in trained)
    of_head = {id(parameter) for parameter in made.module.head.parameters()}
    rates = {group["lr"]: {id(parameter) in of_head for parameter in group["params"]} for group in groups}
    assert rates == {1e-3: {False}, 3e-3: {True}}
    assert {group["lr"] for group in groups} == {group["initial_lr"] for group in groups}
    made.stage.train.pop("head")
    assert {group["lr"] for group in made.parameter_groups()} == {1e-3}
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_lengths_come_where_the_scores_are() -> None:
    """Encoders keep lengths on the CPU, whatever computes; targets and scores are not there. torch's device without memory stands
    for a GPU.
    """
    seen = []

    class Encoder(nn.Module):
        def forward(self, features: torch.Tensor, num_samples: torch.Tensor) -> Frames:
            return Frames([features], torch.tensor([3, 2]))

    class Head(nn.Module):
        def forward(self, frames_CTD: torch.Tensor, lengths_C: torch.Tensor) -> torch.Tensor:
            seen.append(lengths_C.device)
            return frames_CTD

    module = HeadedEncoder(Encoder(), Head())  # type: ignore[arg-type]
    scores_CTV, lengths_C = module(torch.empty(2, 3, 4, device="meta"), torch.tensor([48000, 32000]))
    assert [scores_CTV.device, lengths_C.device, *seen] == [torch.device("meta")] * 3
