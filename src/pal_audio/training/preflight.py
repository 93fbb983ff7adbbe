"""`pal train RECIPE --plan`: the plan of a run without its weights, its folder or its hours."""

import tempfile
from pathlib import Path

from pal_audio.data.collation import Collator
from pal_audio.data.frame_cache import FrameCache, check_cache
from pal_audio.data.mix import DataConfig
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.prepare import Prepared, check_places, prepare
from pal_audio.errors import PalError
from pal_audio.model.building import check_spec
from pal_audio.model.trained import bases_of
from pal_audio.training.fit import check_context, check_disk, check_memory
from pal_audio.training.memory import Device
from pal_audio.training.outcome import Processor, outline, processor_of, texts_of
from pal_audio.training.plan import make_plan, plan_stages
from pal_audio.training.plan_table import Plan
from pal_audio.training.recipe import Recipe, load_recipe
from pal_audio.training.trackers import chosen

NUM_SCENES = 64
"""Scenes that are composed to plan for any number of them."""


def plan_run(recipe_path: str | Path, overrides: list[str] | None = None, out: Path | None = None) -> Plan:
    """The plan of a recipe; nothing is written and no weights are loaded.

    Of composed scenes it makes 64 in a temporary folder and takes the rest to be like them; a fresh tokenizer learns from
    these alone, so that it may cut words otherwise than in the run.

    Args:
        recipe_path, overrides, out: as `run.train` takes them.

    Raises:
        PalError: the recipe is wrong, or its run cannot fit.
    """
    recipe = load_recipe(recipe_path, overrides)
    folder = run_folder(recipe, out)
    check_recipe(recipe)
    device = Device.here()
    check_memory(recipe, outline(recipe), collator_of(processor_of(recipe)), device)
    model = outline(recipe)  # the other one's parameters are frozen as its last stage wants it
    with tempfile.TemporaryDirectory() as scratch:
        data = _sample(recipe, Path(scratch))
        processor = processor_of(recipe, texts_of(data.sample()))
        collator = collator_of(processor)
        stages = plan_stages(recipe, model, collator, data)
        plan = make_plan(folder, recipe, model, processor, data, stages, device)
        check_context(model, processor, stages, collator, data.test)
    check_disk(folder, plan)
    return plan


def check_recipe(recipe: Recipe) -> None:
    """What can be said of a recipe before any work is done for it.

    Raises:
        PalError: data, trackers, adapter, model or frame cache are not there or not possible.
    """
    check_places(recipe.data)
    chosen(recipe.trackers)
    if recipe.adapter is not None:
        recipe.adapter.check()
    check_spec(recipe.model)
    if recipe.save == "trained" and not recipe.model.is_whole:
        raise PalError(
            "save: trained is of a whole model; this one has no way from sound into a language model, so write save: all"
        )
    if recipe.save == "trained" and not bases_of(recipe.model.llm, recipe.model.revision, recipe.model.audio_config()).parts:
        raise PalError(
            "save: trained leaves out what comes from a base, but this model's language model and encoders are all fresh; write "
            "save: all"
        )
    if recipe.frame_cache is not None:
        check_cache(recipe.frame_cache, recipe.model.encoder_configs())


def run_folder(recipe: Recipe, out: Path | None) -> Path:
    """Where a run goes."""
    return Path(out) if out is not None else Path("runs") / recipe.name


def asks_questions(recipe: Recipe) -> bool:
    """Whether a stage learns answers, so that examples must have them and the run is scored by them."""
    return any(stage.objective == "answer" for stage in recipe.stages)


def collator_of(processor: Processor, frames: FrameCache | None = None, skip_unreadable: bool = False) -> Collator:
    """The collator of a run; of parts it makes only what their stages ask for."""
    return Collator(processor, frames=frames, skip_unreadable=skip_unreadable)  # type: ignore[arg-type]


def _sample(recipe: Recipe, scratch: Path) -> Prepared:
    """The data, or for composed scenes a few of them in the number that there will be."""
    config = recipe.data
    if not isinstance(config, DataConfig | MixConfig) or any(stage.sources for stage in recipe.stages):
        return prepare(config, scratch, answered=asks_questions(recipe))
    few = config.model_copy(update={key: min(NUM_SCENES, getattr(config, key)) for key in ("num_train", "num_test")})
    data = prepare(few, scratch)
    sources = {name: (items * -(-config.num_train // len(items)))[: config.num_train] for name, items in data.sources.items()}
    test = (data.test * -(-config.num_test // len(data.test)))[: config.num_test]
    return Prepared(sources, test, data.chance, data.chance_by_task)
