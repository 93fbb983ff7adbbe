"""`events` and `events-ctc`: targets, losses against torch's own, and that they learn."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.training.objectives.events import segment_losses
from pal_audio.training.recipe import Stage
from pal_audio.training.run import train
from tests.training.objectives.made import ENCODER, TONES_HZ, example, manifest, recipe, scores
from tests.training.objectives.test_heads import objective, read

FRAME_S = 0.04


def scene(folder: Path, name: str, letters: str, seed: int = 0, words: bool = False, **meta: Any) -> Example:
    """Tones of 0.2 s behind gaps of 0.1 s, as `made.clip` lays them; `c` is a note."""
    kinds = {"a": "sound", "b": "sound", "c": "instrument"}
    pitches = {"c": {"pitch": 60.4}}
    events = [
        {
            "label": letter,
            "category": kinds[letter],
            "onset_s": 0.1 + 0.3 * n,
            "offset_s": 0.29 + 0.3 * n,
            **pitches.get(letter, {}),
        }
        for n, letter in enumerate(letters)
    ]
    spoken = {"transcript": " ".join(letters)} if words else {}
    return example(folder, name, letters, letters, seed, events=events, seconds=0.3 * len(letters) + 0.1, **spoken, **meta)


def test_a_frame_that_an_event_touches_has_its_label(tmp_path: Path) -> None:
    behind = {"background": "b", "background_category": "sound", "background_clip": "x"}
    items = read(tmp_path, scene(tmp_path, "1", "ac"), scene(tmp_path, "2", "a", **behind), scene(tmp_path, "3", "b"))
    made = objective("events", pitches=True)
    made.prepare(items, items)
    assert made.names == ["a", "b", "c", "note 60"]
    inputs = made.inputs(items)
    lengths = [made.encoder.config.output_lengths(int(num)) for num in inputs["num_samples"]]
    assert lengths == [18, 10, 10]
    targets = inputs["targets"].numpy()
    assert targets.shape == (3, 18, 4)
    for row, label, onset_s, offset_s in (
        (0, 0, 0.1, 0.29),
        (0, 2, 0.4, 0.59),
        (0, 3, 0.4, 0.59),
        (1, 0, 0.1, 0.29),
        (1, 1, 0, 0.4),
    ):
        begins, ends = np.arange(18) * FRAME_S, np.arange(1, 19) * FRAME_S
        expected = (begins < offset_s - 1e-9) & (ends > onset_s + 1e-9)
        assert targets[row, : lengths[row], label].astype(bool).tolist() == expected[: lengths[row]].tolist(), (row, label)
    assert targets[:, :, 1].sum(1).tolist() == [0, 10, 6]
    assert not targets[1:, 10:].any(), "the padding sounds of nothing"
    sounds = objective("events", categories=["sound"])
    sounds.prepare(items, items)
    assert sounds.names == ["a", "b"]


def test_onsets_are_a_label_of_all_sounds_together(tmp_path: Path) -> None:
    """0.1 s from where each begins; what sounds behind from end to end begins with the clip and is none."""
    behind = {"background": "b", "background_category": "sound", "background_clip": "x"}
    items = read(tmp_path, scene(tmp_path, "1", "ac"), scene(tmp_path, "2", "aa", **behind))
    made = objective("events", pitches=True, onsets=True)
    made.prepare(items, items)
    assert made.names == ["a", "b", "c", "note 60", "onset"]
    targets = made.inputs(items)["targets"].numpy()
    plain = objective("events", pitches=True)
    plain.prepare(items, items)
    assert np.array_equal(targets[:, :, :4], plain.inputs(items)["targets"].numpy())
    begins, ends = np.arange(18) * FRAME_S, np.arange(1, 19) * FRAME_S
    expected = sum((begins < start + 0.1 - 1e-9) & (ends > start + 1e-9) for start in (0.1, 0.4))
    assert targets[:, :, 4].tolist() == [expected.tolist()] * 2
    assert expected.sum() == 3 + 3
    cut = scene(tmp_path, "4", "a")
    cut.meta["events"][0] |= {"onset_s": -0.3, "offset_s": 0.39}
    for length in (10, 18):
        heard_TV = made.targets([cut], [length])[0]
        assert heard_TV[:, 0].tolist() == [*[1] * 10, *[0] * (length - 10)], "it sounds from the clip's start"
        assert not heard_TV[:, 4].any(), "and began before it"
    short = scene(tmp_path, "3", "a")
    short.meta["events"][0]["offset_s"] = 0.13
    assert made.targets([short], [10])[0, :, 4].tolist() == [0, 0, 1, 1, *[0] * 6]  # no longer than the sound


def test_a_sound_that_is_outside_the_clip_is_not_asked_for(tmp_path: Path) -> None:
    items = read(tmp_path, scene(tmp_path, "1", "ab"), scene(tmp_path, "2", "a"), scene(tmp_path, "3", "a"))
    items[2].meta["events"][0] |= {"onset_s": 0.0, "offset_s": 0.0}
    made = objective("events")
    made.prepare(items, items)
    assert made.score()["num_of_one"] == 1


def test_onsets_are_scored_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = read(tmp_path, scene(tmp_path, "1", "ac"), scene(tmp_path, "2", "ba"))
    found = {}
    for onsets in (False, True):
        made = objective("events", onsets=onsets)
        made.prepare(items, items)
        outputs = [torch.linspace(-1, 1, 18 * 3).reshape(18, 3), torch.linspace(1, -1, 18 * 3).reshape(18, 3)]
        onset_T1 = [torch.from_numpy(made.targets([item], [18])[0, :, 3:]) for item in items]
        rows = [torch.cat(pair, 1) for pair in zip(outputs, onset_T1, strict=True)] if onsets else outputs
        monkeypatch.setattr(type(made), "outputs", lambda self, examples, rows=rows: zip(examples, rows, strict=True))
        found[onsets] = made.score()
    assert found[True].pop("onset_ap") == 1
    assert found[True] == found[False]


def test_the_loss_is_the_mean_over_a_clips_own_frames(tmp_path: Path) -> None:
    items = read(tmp_path, scene(tmp_path, "1", "abc"), scene(tmp_path, "2", "b"))
    made = objective("events")
    made.prepare(items, items)
    made.module.eval()
    inputs = made.inputs(items)
    assert made.num_units(inputs) == 2
    expected = 0.0
    for item in items:
        alone = made.inputs([item])
        scores_TV = made.module(alone["features"], alone["num_samples"])[0][0]
        each = nn.functional.binary_cross_entropy_with_logits(scores_TV, alone["targets"][0], reduction="none")
        expected += float(each.sum(1).mean().detach())
    assert float(made.loss(made.module, inputs, 2).detach()) == pytest.approx(expected / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["events", "events-ctc"])
def test_a_sound_is_named_as_a_whole_among_what_does_not_sound_with_it(tmp_path: Path, kind: str) -> None:
    """Against a loop over sounds; the last scenes have none of the categories, and words without a scene come first."""
    behind = {"background": "b", "background_category": "sound", "background_clip": "x"}
    scenes = read(
        tmp_path,
        scene(tmp_path, "1", "abc", words=True, **behind),
        scene(tmp_path, "2", "a", words=True, **behind),
        scene(tmp_path, "3", "b", words=True),
        scene(tmp_path, "4", "ca", words=True),
        scene(tmp_path, "5", "c", words=True),
    )
    scenes[2].meta["events"][0] |= {"offset_s": 2.0}  # longer than the clip
    scenes[3].meta["events"][1] |= {"onset_s": 9.0, "offset_s": 9.5}  # outside it
    words = [] if kind == "events" else read(tmp_path, example(tmp_path, "0", "ca", "x", transcript="c a"))
    items = [*words, *scenes]
    made, plain = (objective(kind, categories=["sound"], onsets=True, segment_loss=weight) for weight in (0.7, 0.0))
    for one in (made, plain):
        one.prepare(items[:3], items[:3])
        one.module.eval()
    plain.module.load_state_dict(made.module.state_dict())
    events = made if kind == "events" else made.events
    inputs = made.inputs(items)
    num_frames = [made.config.output_lengths(num) for num in inputs["num_samples"].tolist()][len(words) :]
    assert inputs["segments"].tolist() == [
        [[0, num_frames[0]], [2, 8], [10, 15]],
        [[0, num_frames[1]], [2, 8], [0, 0]],
        [[2, num_frames[2]], [0, 0], [0, 0]],
        [[0, 0]] * 3,
        [[0, 0]] * 3,
    ]
    assert inputs["segment_labels"].tolist() == [[1, 0, 1], [1, 0, -100], [1, -100, -100], [-100] * 3, [-100] * 3]
    output, _ = made.module(inputs["features"], inputs["num_samples"])
    scores_CTV = output if kind == "events" else output[0][len(words) :]
    expected = 0.0
    for row, item in enumerate(scenes[:3]):
        targets_TV = torch.from_numpy(events.targets([item], [num_frames[row]])[0])
        losses = []
        for (start, end), label in zip(inputs["segments"][row].tolist(), inputs["segment_labels"][row].tolist(), strict=True):
            if label >= 0:
                with_it = {k for k in range(2) if k != label and targets_TV[start:end, k].any()}
                allowed = [k for k in range(2) if k not in with_it]
                mean_V = scores_CTV[row, start:end].mean(0)[allowed]
                losses.append(float(-mean_V.log_softmax(0)[allowed.index(label)].detach()))
        expected += 0.7 * sum(losses) / len(losses)
    found, without = (float(one.loss(one.module, one.inputs(items), len(items)).detach()) for one in (made, plain))
    assert expected > 0.1
    assert (found - without) * len(items) == pytest.approx(expected, rel=1e-4)
    assert not {"segments", "segment_labels"} & plain.inputs(items).keys()
    made.loss(made.module, made.inputs(scenes[3:]), 2).backward()  # no sound in the whole batch
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.module.parameters())


def test_a_pitch_is_no_name_for_a_sound(tmp_path: Path) -> None:
    items = read(tmp_path, scene(tmp_path, "1", "a"), scene(tmp_path, "2", "bc"))
    made, plain = (objective("events", pitches=True, segment_loss=weight) for weight in (1.0, 0.0))
    for one in (made, plain):
        one.prepare(items, items)
        one.module.eval()
    plain.module.load_state_dict(made.module.state_dict())
    assert made.names == ["a", "b", "c", "note 60"]
    inputs = made.inputs(items[:1])
    scores_TV = made.module(inputs["features"], inputs["num_samples"])[0][0]
    expected = float(-scores_TV[2:8, :3].mean(0).log_softmax(0)[0].detach())
    found, without = (float(one.loss(one.module, one.inputs(items[:1]), 1).detach()) for one in (made, plain))
    assert found - without == pytest.approx(expected, rel=1e-4)


def test_sounds_are_named_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    scores_CTK, targets_CTK = torch.randn(2, 50, 5) * 5, (torch.rand(2, 50, 5) < 0.01).float()
    segments_CE2, labels_CE = torch.tensor([[[3, 40], [10, 20]], [[0, 50], [0, 0]]]), torch.tensor([[1, 4], [2, -100]])
    exact = segment_losses(scores_CTK, targets_CTK, segments_CE2, labels_CE)
    with torch.autocast("cpu", torch.bfloat16):
        found = segment_losses(scores_CTK, targets_CTK, segments_CE2, labels_CE)
    assert torch.equal(found, exact)


def test_sounds_are_scored_by_the_mean_of_their_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = {"background": "b", "background_category": "sound", "background_clip": "x"}
    items = read(tmp_path, scene(tmp_path, "1", "ac", **behind), scene(tmp_path, "2", "c"))
    made = objective("events", pitches=True)
    made.prepare(items, items)
    assert made.names == ["a", "b", "c", "note 60"]
    of_a = torch.tensor([1.0, 5, 0, 9]).repeat(18, 1)  # b sounds with it, and a pitch is no name
    outputs = [of_a, torch.tensor([1.0, 0, 0.9, 0]).repeat(10, 1)]
    monkeypatch.setattr(type(made), "outputs", lambda self, examples: zip(examples, outputs, strict=True))
    found = made.score()
    assert found["num_sounds"] == 3, "a, c, and c; b behind them has no other to be taken for"
    assert found["sound_accuracy"] == 1 / 3, "a; c takes itself for a"
    assert (found["accuracy"], found["num_of_one"]) == (0, 1)


def test_a_sound_with_which_every_label_sounds_is_no_score(tmp_path: Path) -> None:
    behind = {"background": "b", "background_category": "sound", "background_clip": "x"}
    items = read(tmp_path, scene(tmp_path, "1", "a", **behind), scene(tmp_path, "2", "b"))
    made = objective("events")
    made.prepare(items, items)
    assert made.score()["num_sounds"] == 1


def test_both_losses_are_those_of_each_alone(tmp_path: Path) -> None:
    """A scene of sounds, one with words beside, and words alone; heads and encoder are the same."""
    words_alone = example(tmp_path, "3", "ca", "x", transcript="c a")
    items = read(tmp_path, scene(tmp_path, "1", "ab"), scene(tmp_path, "2", "abc", words=True), words_alone)
    both = objective("events-ctc", symbols="words")
    both.prepare(items, items)
    both.module.eval()
    inputs = both.inputs(items)
    assert both.num_units(inputs) == 3
    expected = 0.0
    for part, chosen in ((both.events, items[:2]), (both.ctc, items[1:])):
        for item in chosen:
            alone = part.inputs([item])
            num_symbols = len(part.target(item)) if part is both.ctc else 1
            expected += float(part.loss(part.module, alone, num_symbols).detach())
    assert float(both.loss(both.module, inputs, 3).detach()) == pytest.approx(expected / 3, rel=1e-4)
    part = both.inputs(items[:1])  # without words: the other head has a gradient of zero, for processes that wait for it
    both.loss(both.module, part, 1).backward()
    assert both.module.head.ctc.weight.grad.eq(0).all()
    assert both.module.head.events.weight.grad.ne(0).any()
    parameters = {id(p) for group in both.parameter_groups() for p in group["params"]}
    assert parameters >= {id(p) for p in both.module.head.parameters()}


def test_what_cannot_be_learnt_is_named(tmp_path: Path) -> None:
    plain, item = example(tmp_path, "plain", "a", "a"), scene(tmp_path, "scene", "ab")
    cases: list[tuple[str, dict[str, Any], list[Example], str]] = [
        ("events", {}, [item, plain], "'plain': its meta is not that of a scene"),
        ("events", {"categories": ["voice"]}, [item], "have 0 labels; .* are categories .'voice'. those of the mix"),
        ("events", {"pitches": True}, [item], "no training example has a note with a pitch"),
        ("events-ctc", {}, [item], "no training example has meta.transcript; take objective events or ctc alone"),
        ("events-ctc", {}, [example(tmp_path, "w", "a", "a", transcript="a")], "no training example has meta.events"),
    ]
    for kind, stage, examples, words in cases:
        items = read(tmp_path, *examples)
        with pytest.raises(PalError, match=words):
            objective(kind, **stage).prepare(items, items)
    called = scene(tmp_path, "called", "ac")
    called.meta["events"][0]["label"] = "note 60"
    items = read(tmp_path, called)
    with pytest.raises(PalError, match="a sound is called as a pitch is, 'note 60'"):
        objective("events", pitches=True).prepare(items, items)
    train, test = read(tmp_path, item), read(tmp_path, scene(tmp_path, "new", "c"))
    with pytest.raises(PalError, match="no held-out example has labels of the training examples alone"):
        objective("events").prepare(train, test)
    with pytest.raises(ValueError, match="`categories` belongs to objective events or events-ctc, not ctc"):
        Stage(objective="ctc", train={"encoder": 1e-3}, steps=1, categories=["sound"])


def test_several_tasks_are_chosen_and_one_that_is_not_there_is_said(tmp_path: Path) -> None:
    items = read(tmp_path, *(example(tmp_path, task, "a", "a", task=task) for task in ("spell", "sing", "hum")))
    assert [item.id for item in objective("ctc", task=["sing", "spell"]).chosen(items, "training")] == ["spell", "sing"]
    with pytest.warns(UserWarning, match="no training example has task 'shout'; there are hum, sing, spell"):
        objective("ctc", task=["sing", "shout"]).chosen(items, "training")
    with pytest.raises(PalError, match="no training example has task 'shout'"):
        objective("ctc", task=["shout"]).chosen(items, "training")


def test_both_are_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for name, num in (("train", 48), ("test", 16)):
        texts = ["".join(rng.choice([*TONES_HZ], rng.integers(1, 4))) for _ in range(num)]
        paths.append(
            manifest(tmp_path, name, [scene(tmp_path, f"{name}-{n}", text, n, words=True) for n, text in enumerate(texts)])
        )
    stage = {"objective": "events-ctc", "symbols": "words", "train": {"encoder": 5e-3, "head": 5e-3}, "steps": 120}
    stage |= {"segment_loss": 1}
    torch.manual_seed(0)
    run = train(recipe(tmp_path, {"encoder": ENCODER}, [paths[0]], [paths[1]], stage, seed=1), out=tmp_path / "run")
    (found,) = scores(run)
    assert found["events.frame_map"] > 0.9 > 2 * found["events.chance"]
    assert found["events.accuracy"] == 1.0
    assert found["events.num_of_one"] > 2
    assert found["ctc.wer"] < 0.1
    assert (run / "encoders" / "audio" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["events", "events-ctc"])
def test_worker_processes_make_the_same_inputs(tmp_path: Path, kind: str) -> None:
    items = read(tmp_path, scene(tmp_path, "1", "ab", words=True), scene(tmp_path, "2", "ba", words=True))
    made = objective(kind, segment_loss=1.0)
    made.prepare(items, items)
    maker = pickle.loads(pickle.dumps(made.maker(2)))
    assert not any(isinstance(value, nn.Module) for value in vars(maker).values())
    expected, found = made.inputs(items), maker.inputs(items)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert maker.num_units(found) == made.num_units(expected)
