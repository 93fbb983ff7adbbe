"""Recipes: what is read, what is refused, and what a stage trains."""

from pathlib import Path

import pytest

from pal_audio.data.prepare import prepare
from pal_audio.errors import PalError
from pal_audio.training.batches import BatchOrder, Budget, Size
from pal_audio.training.groups import GROUPS, parameter_groups
from pal_audio.training.loop import schedule, step_seed
from pal_audio.training.overlay import read_recipe
from pal_audio.training.recipe import Stage, load_data, load_recipe, says_data_alone
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path: Path) -> None:
    assert read_recipe(path)["name"] == path.stem
    assert load_data(path).type in ("scenes", "mix", "manifests")
    if not says_data_alone(read_recipe(path)):
        assert load_recipe(path).name == path.stem


def test_overrides_are_yaml_values_at_a_path() -> None:
    recipe = load_recipe(
        QUICKSTART, ["stages.0.steps=7", "stages.0.train.llm=1e-4", "model.lal.layers=[0]", "data.seed=3", "model.positions=zero"]
    )
    assert recipe.stages[0].steps == 7
    assert recipe.stages[0].train["llm"] == 1e-4
    assert recipe.model.lal == {"layers": [0]}
    assert (recipe.data.seed, recipe.model.positions) == (3, "zero")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0.stepz=7", "did you mean 'steps'"),
        ("stages.1.steps=7", "no entry of a list of 1"),
        ("seed.a=7", "has no parts"),
        ("stages.0.train={ears: 1.0}", "'ears'.*there are connector"),
        ("stages.0.train={}", "at least one part"),
        ("stages.0.train.llm=.nan", "train.llm: Input should be a finite number"),
        ("stages.0.max_grad_norm=.inf", "finite number"),
        ("stages.0.epochs=2", "either `steps` or `epochs`"),
        ("data.taks={}", "did you mean 'tasks'"),
        ("name=../up", "name"),
        ("steps", "a.b=value"),
        ("a=[", "not YAML"),
    ],
)
def test_what_is_wrong_is_one_line(override: str, words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        load_recipe(QUICKSTART, [override])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    for content, words in (("[1]", "is a mapping"), ("a: [", "cannot be read"), ("name: a", "model")):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(PalError, match=words):
            load_recipe(tmp_path / "r.yaml")
    with pytest.raises(PalError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("arm", "part"),
    [
        (arm, part)
        for arm in ("plits", "lal", "pal", "flamingo")
        for part in GROUPS
        if part not in ("projector", "llm.adapter") and (part != "flamingo" or arm == "flamingo")
    ],
)
def test_exactly_the_named_part_trains(arm: str, part: str) -> None:
    """Invariant 7: gradients are asked of the named part and of nothing else."""
    model, _ = tiny_model("llama", arm)
    groups = parameter_groups(model, {part: 1e-3}, 0.1)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {name for name, _ in model.named_parameters() if GROUPS[part](name)}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert all(group["weight_decay"] == 0 for group in groups if all(p.ndim <= 1 for p in group["params"]))  # type: ignore[attr-defined]


def test_every_parameter_belongs_to_one_part_and_each_llm_parameter_to_one_of_its_parts() -> None:
    for family in ("llama", "qwen2", "gemma3_text", "olmo2", "phi3"):
        arms = [tiny_model(family, arm, adapter={"type": "dora", "target": "all_linear"})[0] for arm in ("pal", "flamingo")]
        for name in (name for model in arms for name, _ in model.named_parameters()):
            whole = [part for part in GROUPS if (not part.startswith("llm.") or part == "llm.adapter") and GROUPS[part](name)]
            parts = [part for part in GROUPS if part.startswith("llm.") and part != "llm.adapter" and GROUPS[part](name)]
            assert len(whole) == 1, name
            assert len(parts) == (whole == ["llm"]), name


def test_a_finer_part_keeps_its_own_rate_and_missing_parts_are_said() -> None:
    model, _ = tiny_model("llama", "plits")
    groups = parameter_groups(model, {"llm": 1e-3, "llm.ffn": 1e-5}, 0.0)
    ffn = {id(p) for name, p in model.named_parameters() if ".mlp." in name}
    for group in groups:
        ids = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
        assert (group["lr"] == 1e-5) == bool(ids & ffn)
    with pytest.warns(UserWarning, match="no LAL stream"):
        parameter_groups(model, {"projector": 1e-3, "llm": 1e-3}, 0.0)
    frozen, _ = tiny_model(
        "llama", "lal", encoder={"type": "conv", "num_mels": 16, "channels": [4], "time_strides": [2], "frozen": True}
    )
    with pytest.raises(PalError, match="frozen: true"):
        parameter_groups(frozen, {"encoder": 1e-3}, 0.0)


def _order(lengths: list[int], limit: int | Budget, seed: int = 1) -> BatchOrder:
    return BatchOrder([Size(float(length), length // 2, f"item {length}") for length in lengths], limit, seed)


@pytest.mark.parametrize("limit", [8, Budget(200.0, 60), Budget(None, 60, packed=False)])
def test_the_order_of_batches_is_a_function_of_seed_and_step(limit: int | Budget) -> None:
    lengths = [(7 * index) % 50 for index in range(101)]
    order, again = _order(lengths, limit), _order(lengths, limit)
    backwards = {step: again.batch(step) for step in reversed(range(60))}
    assert all(order.batch(step) == backwards[step] for step in range(60))
    epoch = [index for step in range(order.num_steps(1)) for index in order.batch(step)]
    assert sorted(epoch) == list(range(101))
    second = range(order.num_steps(1), order.num_steps(2))
    assert sorted(index for step in second for index in order.batch(step)) == list(range(101))
    other = _order(lengths, limit, seed=2)
    assert epoch != [index for step in range(other.num_steps(1)) for index in other.batch(step)]


def test_stages_name_tasks_of_composed_scenes(recipe: Path, tmp_path: Path) -> None:
    settings = load_recipe(recipe, ["stages.0.sources=[count, first]", "data.tasks={count: 1, first: 1, last: 2}"])
    data = prepare(settings.data, tmp_path / "data")
    assert {example.task for example in data.train(settings.stages[0].sources)} == {"count", "first"}
    assert len(data.train()) == 24
    with pytest.raises(PalError, match="no source is called 'pitch'; there are scenes, count"):
        load_recipe(recipe, ["stages.0.sources=[pitch]", "data.tasks={count: 1}"])


def test_batches_hold_examples_of_like_length() -> None:
    lengths = [(7 * index) % 50 for index in range(101)]
    order = _order(lengths, 8)
    spreads = [max(lengths[i] for i in order.batch(step)) - min(lengths[i] for i in order.batch(step)) for step in range(8)]
    assert sum(spreads) / len(spreads) < 15  # sorted within pools: a random batch of 8 spreads over 40


def test_a_budget_is_never_exceeded_and_well_used() -> None:
    lengths = [1 + (7 * index) % 50 for index in range(300)]
    order = _order(lengths, Budget(200.0, 80))
    used = []
    for step in range(order.num_steps(1)):
        chosen = [lengths[index] for index in order.batch(step)]
        assert len(chosen) * max(chosen) <= 200
        assert sum(length // 2 for length in chosen) <= 80
        used.append(max(len(chosen) * max(chosen) / 200, sum(length // 2 for length in chosen) / 80))
    assert sum(used) / len(used) > 0.75
    with pytest.raises(PalError, match=r"'item 43' alone has 43.0 s .*batch_audio_s 40"):
        _order(lengths, Budget(40.0))


def test_schedules_start_and_end_where_they_should() -> None:
    stage = Stage(train={"llm": 1.0}, steps=100, warmup_steps=10)
    factors = [schedule(stage, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[-1] < 0.01
    assert schedule(stage.model_copy(update={"schedule": "linear"}), 55, 100) == pytest.approx(0.5)
    assert schedule(stage.model_copy(update={"schedule": "constant"}), 99, 100) == 1.0
    assert len({step_seed(0, stage, step) for stage in range(3) for step in range(100)}) == 300
