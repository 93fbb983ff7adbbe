"""The lab's recipes, made tiny, in their order: each builds on the files of the one before, and trains what it says.

All paths in them count from one folder: `world/`, `runs/`, `frames/`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from benchmarks.lab.bundle import MOST_PARAMETERS
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pal_audio import cli
from pal_audio.commands import recipes
from pal_audio.config import parse_config
from pal_audio.data import MixConfig, read_catalogue, read_manifest
from pal_audio.data.balance import BLOCK
from pal_audio.errors import PalError
from pal_audio.model import ModelSpec, build_model, load
from pal_audio.training.groups import GROUPS
from pal_audio.training.overlay import read_recipe
from pal_audio.training.recipe import load_data
from pal_audio.training.run import train
from tests.data.mixing.sets import make_all
from tests.training.objectives.made import ENCODER
from tests.training.shrink import tiny_llm

LAB = Path(__file__).parents[2] / "recipes" / "lab"
ENCODERS = ("encoder-general", "encoder-speech", "encoder-unified")
ARMS = sorted(path.stem for path in (LAB / "arms").glob("*.yaml"))
ABLATIONS = sorted(path.stem for path in (LAB / "ablations").glob("*.yaml"))
STEPS = 2
SHORT = ["precision=float32", f"stages.0.steps={STEPS}", "stages.0.batch_size=4", "stages.0.warmup_steps=0"]
FEW = ["stages.0.eval_examples=4", "stages.0.eval_every=2", "data.test.0.first=3"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the world, the language model, three encoders and the frames of all, as the recipes name them."""
    folder = tmp_path_factory.mktemp("lab")
    make_all(folder / "sounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision a process
        size = ["--set", "data.root=sounds", "--set", "data.num_train=60", "--set", "data.num_test=40"]
        for world in ("world", "text-world"):
            assert cli.main(["data", "mix", f"lab/{world}", world, "--workers", "1", *size]) == 0
        llm = tiny_llm({"model_type": "llama"}) | {"num_hidden_layers": 6}  # ablations count the lab's layers
        train(LAB / "lm.yaml", [*SHORT, f"model.llm={json.dumps(llm)}"])
        for name in ENCODERS:
            train(LAB / f"{name}.yaml", [*SHORT, f"model.encoder={json.dumps(ENCODER)}"])
        for arm in ("lab/arms/lal", "lab/arms/pal-multi"):
            assert cli.main(["encode", "world/train.jsonl", "world/test.jsonl", "frames", "--recipe", arm]) == 0
        yield folder


def test_there_are_the_arms_that_are_compared() -> None:
    assert set(ARMS) == {
        "plits", "plits-pooled", "lal", "lal-frozen-ffn", "lal-frozen-llm", "pal", "pal-ordered", "pal-multi",
        "flamingo", "blind",
    }  # fmt: skip


@pytest.mark.parametrize("name", [f"arms/{arm}" for arm in ARMS] + [f"ablations/{name}" for name in ABLATIONS])
def test_an_arm_differs_in_how_sound_enters_alone(name: str) -> None:
    shared, arm = read_recipe(LAB / "arm.yaml"), read_recipe(LAB / f"{name}.yaml")
    assert arm["name"] == f"lab-{Path(name).name}"
    ways = {key: shared[key] for key in shared if key not in ("name", "model", "stages")}
    assert ways == {key: arm[key] for key in arm if key not in ("name", "model", "stages")}
    assert arm["model"]["llm"] == shared["model"]["llm"]
    assert arm["model"].get("encoder") == (None if "-multi" in name else shared["model"]["encoder"])
    (before,), (after,) = shared["stages"], arm["stages"]
    assert {key: before[key] for key in before if key != "train"} == {key: after[key] for key in after if key != "train"}
    rates = {"connector", "projector", "flamingo", "llm", "llm.attention", "llm.norm", "llm.embeddings"}
    assert rates >= set(after["train"])
    slower = {"llm": before["train"]["llm"] / 2} if name.endswith("-slow-llm") else {}
    assert after["train"] == dict.fromkeys(after["train"], before["train"]["llm"]) | slower, "one rate for all parts of all arms"


@pytest.mark.parametrize("arm", sorted(set(ARMS) - {"flamingo"}))
def test_an_arm_is_small_enough_to_be_bundled(arm: str) -> None:
    """Built with the sizes that the recipes of its parts say; the vocabulary of a few words stands for the whole one."""

    def sizes(part: dict[str, Any]) -> dict[str, Any]:
        name = str(part["checkpoint"]).split("/")[1].removeprefix("lab-")
        return dict(read_recipe(LAB / f"{name}.yaml")["model"]["encoder"])

    llm = read_recipe(LAB / "lm.yaml")["model"]["llm"]
    model = {key: value for key, value in read_recipe(LAB / "arms" / f"{arm}.yaml")["model"].items() if value is not None}
    model["llm"] = llm
    if "encoder" in model:
        model["encoder"] = sizes(model["encoder"])
    else:
        model["encoders"] = {name: sizes(part) for name, part in model["encoders"].items()}
    built, _ = build_model(parse_config(TypeAdapter(ModelSpec), model, "model"), ["a dog barks"], None)
    words = llm["tokenizer"]["vocab_size"] - built.get_input_embeddings().num_embeddings
    num_parameters = sum(parameter.numel() for parameter in built.parameters()) + words * llm["hidden_size"]
    assert 5e6 < num_parameters < MOST_PARAMETERS


@pytest.mark.filterwarnings("ignore:train. projector:UserWarning")
@pytest.mark.parametrize("name", [f"arms/{arm}" for arm in ARMS] + [f"ablations/{name}" for name in ABLATIONS])
def test_an_arm_trains_exactly_its_parts_from_cached_frames(lab: Path, name: str) -> None:
    settings = [*SHORT, *FEW, "stages.0.save_every=1"]
    run = train(LAB / f"{name}.yaml", settings, out=lab / "runs" / name.replace("/", "-"))
    one, two = (load_file(run / "checkpoints-0" / f"{step:08d}" / "model.safetensors") for step in (1, 2))
    changed = {key for key, tensor in two.items() if not tensor.equal(one[key])}
    parts = read_recipe(LAB / f"{name}.yaml")["stages"][0]["train"]
    for part in parts:
        assert any(GROUPS[part](key) for key in changed), part
    assert all(any(GROUPS[part](key) for part in parts) for key in changed)
    base = load_file(lab / "runs" / "lab-lm" / "llm" / "model.safetensors")
    frozen = [key for key in two if key.startswith("language_model.") and key not in changed]
    assert all(two[key].equal(base[key.removeprefix("language_model.")]) for key in frozen)
    heard = {key for key in two if key.startswith("encoders.")}
    assert heard
    assert not heard & changed
    model, _ = load(run / "final")
    layers = [stream.layers for stream in model.streams if stream.gives_keys]
    if name == "arms/blind":
        assert layers == [()]
        answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
        assert [row["answer"] for row in answers] == [row["muted_answer"] for row in answers]


def test_the_language_model_reads_scenes_as_text_and_learns_answers(lab: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(lab / "runs" / "lab-lm" / "llm")
    assert model.config.hidden_size == 32
    tokenizer = AutoTokenizer.from_pretrained(lab / "runs" / "lab-lm" / "llm")
    num_tokens = 0
    for example in read_manifest(lab / "text-world" / "train.jsonl"):
        assert example.question.startswith("scene of")
        num_tokens += len(tokenizer(example.answer, add_special_tokens=False)["input_ids"]) + 1  # and the end of the turn
    assert f"text: {num_tokens:,} tokens" in (lab / "runs" / "lab-lm" / "report.md").read_text()


def test_the_encoders_learn_what_the_recipes_say(lab: Path) -> None:
    for name in ENCODERS:
        recipe = read_recipe(LAB / f"{name}.yaml")
        encoder = recipe["model"]["encoder"]
        assert encoder["window_s"] == 8
        scores = json.loads((lab / "runs" / recipe["name"] / "scores.json").read_text())["stages"][0]
        assert scores["objective"] == recipe["stages"][0]["objective"]
        assert ("ctc.wer" in scores["scores"]) == (name != "encoder-general")
        categories = {"general": "sound instrument", "speech": "digit", "unified": "sound instrument digit"}
        assert recipe["stages"][0]["categories"] == categories[name.removeprefix("encoder-")].split()
        arm = "pal-multi" if name != "encoder-unified" else "lal"
        assert f"runs/{recipe['name']}/encoders/audio" in json.dumps(read_recipe(LAB / "arms" / f"{arm}.yaml"))
    catalogue = load_data(LAB / "world.yaml", [f"data.root={lab / 'sounds'}"])
    assert isinstance(catalogue, MixConfig)


def test_every_task_of_the_world_has_at_least_500_tests_beside_those_of_the_curves() -> None:
    world = load_data(LAB / "world.yaml")
    assert isinstance(world, MixConfig)
    assert world.num_train >= 100_000
    assert sum(world.active_tasks.values()) == BLOCK, "weights are percents, so that shares are exact"
    assert min(world.active_tasks.values()) * world.num_test / BLOCK >= 540
    speech = read_recipe(LAB / "encoder-speech.yaml")["stages"][0]["task"]
    assert {name for name, task in world.tasks.items() if "digit" in task.categories} == set(speech)


def test_no_recording_of_the_tests_trains(lab: Path) -> None:
    """What the manifests say, not what the guard says."""
    heard = {}
    for split in ("train", "test"):
        events = [example.meta for example in read_manifest(lab / "world" / f"{split}.jsonl")]
        heard[split] = {event["clip"] for meta in events for event in meta["events"]}
        heard[split] |= {meta["background_clip"] for meta in events if "background_clip" in meta}
    assert heard["train"]
    assert not heard["train"] & heard["test"]
    assert not any("theo" in clip for clip in heard["train"])
    assert any("theo" in clip for clip in heard["test"])


def test_the_bundled_models_world_is_that_of_the_tests(lab: Path) -> None:
    root = [f"data.root={lab / 'sounds'}"]
    world, dev = (load_data(LAB / f"{name}.yaml", root) for name in ("world", "world-dev"))
    assert isinstance(world, MixConfig)
    assert isinstance(dev, MixConfig)
    assert dev.tasks == world.tasks
    tested, trained = (
        {clip.id for clip in read_catalogue(config).clips[split]} for config, split in ((world, "test"), (dev, "train"))
    )
    assert tested == trained


def test_shipped_recipes_in_subfolders_are_found_shown_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "list"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {"quickstart", "lab/world", "lab/arms/pal"} <= listed
    assert cli.main(["recipes", "show", "lab/arms/pal"]) == 0
    assert capsys.readouterr().out == (LAB / "arms" / "pal.yaml").read_text()
    assert cli.main(["recipes", "copy", "lab/arms/pal-ordered"]) == 0
    assert read_recipe(tmp_path / "pal-ordered.yaml") == read_recipe(LAB / "arms" / "pal-ordered.yaml")
    assert recipes.find("lab/arms/pal") == LAB / "arms" / "pal.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: lab/arms/pal.yaml\nname: mine\n")
    assert read_recipe(mine) == read_recipe(LAB / "arms" / "pal.yaml") | {"name": "mine"}
    mine.write_text("base: lab/../quickstart.yaml\n")
    with pytest.raises(PalError, match=r"no such recipe lab/\.\./quickstart"):
        read_recipe(mine)
    for wrong, words in (
        ("lab/arms/pall", "did you mean the shipped 'lab/arms/pal'"),
        ("recipes/lab/lm.yaml", "use `lab/lm` alone"),
    ):
        assert cli.main(["train", wrong]) == 2
        assert words in capsys.readouterr().err
