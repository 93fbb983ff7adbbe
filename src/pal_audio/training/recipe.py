"""Recipes: one YAML that says the model, the data and the stages of training."""

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, TypeAdapter, field_validator, model_validator

from pal_audio.config import StrictConfig, parse_config
from pal_audio.data.cores import MAX_WORKERS, reading_workers
from pal_audio.data.mix import DataConfig
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.sources import ManifestsConfig, ShardsConfig, TextSourceConfig
from pal_audio.errors import PalError
from pal_audio.integration.recompute import RecomputeSetting
from pal_audio.integration.training_attention import DEFAULT_KERNEL, AudioKernel
from pal_audio.integration.unprojected import DEFAULT_PROJECTIONS, Projections
from pal_audio.model.adapters import AdapterConfig
from pal_audio.model.building import ModelSpec
from pal_audio.training.batches import BatchOrder, Budget
from pal_audio.training.groups import GROUPS, QLORA_FROZEN, frozen_by_qlora
from pal_audio.training.overlay import read_recipe

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _data_type(values: Any) -> str:
    return str(values.get("type", "scenes") if isinstance(values, dict) else getattr(values, "type", "scenes"))


Data = Annotated[
    Annotated[DataConfig, Tag("scenes")]
    | Annotated[MixConfig, Tag("mix")]
    | Annotated[ManifestsConfig, Tag("manifests")]
    | Annotated[ShardsConfig, Tag("shards")],
    Discriminator(
        _data_type,
        custom_error_type="data_type",
        custom_error_message="type must be scenes, mix, manifests or shards",
    ),
]


HEAD = "head"
"""In a stage's `train`: the head by which an encoder learns; it is no part of a model."""
_OF_ENCODER = ("ctc", "tags", "events", "events-ctc")
_KEYS_OF = {
    "max_tokens": ("text",),
    "assistant_only": ("text",),
    "batch_audio_s": ("answer", *_OF_ENCODER),
    "batch_text_tokens": ("answer", "text"),
    "encoder": _OF_ENCODER,
    "task": _OF_ENCODER,
    "categories": ("events", "events-ctc"),
    "pitches": ("events", "events-ctc"),
    "onsets": ("events", "events-ctc"),
    "segment_loss": ("events", "events-ctc"),
    "symbols": ("ctc", "events-ctc"),
    "pooling": ("tags",),
    "packing": ("answer",),
    "checkpointing": ("answer", "text"),
    "recompute_audio": ("answer",),
    "audio_kernel": ("answer",),
    "projections": ("answer",),
    "compile": ("answer", "text"),
}
"""Keys that not every objective has, and those that have them."""


class Stage(StrictConfig):
    """One stage: what trains, for how long, how fast.

    Attributes:
        train: learning rate of each part that trains; see `training.groups`. Whatever is not named is frozen.
        steps, epochs: its length, one of the two.
        sources: names of the data's sources that it trains on; all of them where left out.
        objective: what it learns by; see `training.objectives`.
        max_tokens: of `text`: longer texts are cut into pieces of this many tokens.
        assistant_only: of `text`: of conversations the assistant's words alone are learnt; documents as ever.
        encoder: of encoders' objectives: which one learns, where there are several.
        task: of encoders' objectives: examples of this task alone, or of these.
        categories: of `events` and `events-ctc`: those of the sounds that are learnt; all where left out.
        pitches: of `events` and `events-ctc`: notes' pitches are learnt too.
        onsets: of `events` and `events-ctc`: that a sound begins is learnt too, whichever it is.
        segment_loss: of `events` and `events-ctc`: how much naming each sound as a whole counts beside the loss of frames.
        symbols: of `ctc` and `events-ctc`: what is written, characters (where left out) or words.
        pooling: of `tags`: frames to one vector by their mean (where left out) or by attention.
        batch_size: examples a step (16), or
        batch_audio_s, batch_text_tokens: what a step holds at most, padding included.
        packing: take a batch through the LLM without its padding; the numbers are the same.
        checkpointing: keep each LLM layer's input only and compute the layer again for its gradients; likewise.
        recompute_audio: likewise for audio's keys and values only: `full`, or `light`, which computes no matrix product again.
        audio_kernel: how LAL layers attend; see `integration.training_attention`.
        projections: how LAL layers make keys and values of audio; see `integration.unprojected`.
        compile: `torch.compile` of the LLM's layers; likewise, to rounding.
        accumulate: parts that a batch is computed in, one after another; the step is the same, the memory less.
        warmup_steps: linear warm-up.
        schedule: after the warm-up, to zero by cosine or linearly, or constant.
        eval_every: steps between evaluations on held-out examples; none where left out.
        eval_examples, eval_samples: held-out examples whose loss is taken, and how many of them are answered.
        keep: weights that the stage ends with, the last or those of the lowest held-out loss.
    """

    name: str = "stage"
    train: dict[str, float]
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    sources: list[str] | None = Field(None, min_length=1)
    objective: Literal["answer", "text", "ctc", "tags", "events", "events-ctc"] = "answer"
    max_tokens: int | None = Field(None, ge=2)
    assistant_only: bool = False
    encoder: str | None = None
    task: str | list[str] | None = Field(None, min_length=1)
    categories: list[str] | None = Field(None, min_length=1)
    pitches: bool = False
    onsets: bool = False
    segment_loss: float = Field(0.0, ge=0, allow_inf_nan=False)
    symbols: Literal["characters", "words"] | None = None
    pooling: Literal["mean", "attention"] | None = None
    batch_size: int | None = Field(None, ge=1)
    batch_audio_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    batch_text_tokens: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1)
    packing: bool = True
    checkpointing: bool = False
    recompute_audio: RecomputeSetting = "none"
    audio_kernel: AudioKernel = DEFAULT_KERNEL
    projections: Projections = DEFAULT_PROJECTIONS
    compile: bool = False
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    save_every: int = Field(500, ge=1)
    eval_every: int | None = Field(None, ge=1)
    eval_examples: int = Field(64, ge=1)
    eval_samples: int = Field(4, ge=0)
    keep: Literal["last", "best"] = "last"

    @field_validator("train")
    @classmethod
    def _known_groups(cls, train: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in train if name not in (*GROUPS, HEAD)]
        if unknown:
            raise PalError(f"no part of a model is called {unknown[0]!r}; there are {', '.join(GROUPS)}, and {HEAD}")
        if not train or any(rate <= 0 for rate in train.values()):
            raise PalError("name at least one part with a learning rate above 0; what is not named is frozen")
        return train

    @model_validator(mode="after")
    def _one_length(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise PalError(f"stage {self.name!r}: give either `steps` or `epochs`")
        if self.by_budget and self.batch_size is not None:
            raise PalError(f"stage {self.name!r}: give either `batch_size` or `batch_audio_s` and `batch_text_tokens`")
        if self.keep == "best" and self.eval_every is None:
            raise PalError(f"stage {self.name!r}: `keep: best` needs `eval_every`, by which the best is known")
        return self

    @model_validator(mode="after")
    def _fits_the_objective(self) -> "Stage":
        where = f"stage {self.name!r}"
        for key, objectives in _KEYS_OF.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.objective not in objectives:
                raise PalError(
                    f"{where}: `{key}` belongs to objective {' or '.join(objectives)}, not {self.objective}; take it out"
                )
        allowed = {"answer": [*GROUPS], "text": [part for part in GROUPS if part.startswith("llm")]}.get(
            self.objective, ["encoder", HEAD]
        )
        stray = [part for part in self.train if part not in allowed]
        if stray:
            raise PalError(f"{where}: objective {self.objective} cannot train {stray[0]!r}; it trains {', '.join(allowed)}")
        if self.of_encoder and "encoder" not in self.train:
            raise PalError(f"{where}: objective {self.objective} trains an encoder; name its rate: train: {{encoder: 1e-3}}")
        return self

    @property
    def of_encoder(self) -> bool:
        """An encoder learns by a head that is thrown away."""
        return self.objective in _OF_ENCODER

    @property
    def by_budget(self) -> bool:
        """Batches hold as many examples as fit, not a number of them."""
        return self.batch_audio_s is not None or self.batch_text_tokens is not None

    @property
    def limit(self) -> int | Budget:
        """What a batch holds."""
        packed = self.packing and self.objective != "text"
        return Budget(self.batch_audio_s, self.batch_text_tokens, packed) if self.by_budget else self.batch_size or 16

    def num_steps(self, order: BatchOrder) -> int:
        """Steps of the stage over examples in this order."""
        return self.steps if self.steps is not None else order.num_steps(self.epochs or 0)


class DataRecipe(StrictConfig):
    """A recipe that says data alone: `pal data mix` makes it, and a recipe to train takes it as its `base`."""

    name: str = Field(pattern=_NAME)
    data: Data


class Recipe(StrictConfig):
    """A whole run; docs/training.md lists every key.

    Attributes:
        adapter: on the LLM. It is there from the first stage, as the identity; a stage that names `llm.adapter` trains it.
        frame_cache: a folder of `pal encode`, read instead of sound; every encoder must be frozen.
        parallel: how several processes share the work; a run may go on under the other, or with another number of them.
        save: what the final folder holds: everything, or what was trained, with the names and hashes of the bases.
        workers: processes that read sound ahead of each process that trains, and at least one that compose scenes; see
            `Recipe.num_workers`. They change no number.
        trackers: where numbers go beside the log; TensorBoard where it is installed and nothing is named.
    """

    name: str = Field(pattern=_NAME)
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["float32", "bfloat16"] = "float32"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    model: ModelSpec
    adapter: AdapterConfig | None = None
    data: Data
    save: Literal["all", "trained"] = "all"
    frame_cache: Path | None = None
    unreadable_clips: Literal["error", "skip"] = "error"
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] | None = None
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        trains = any("llm.adapter" in stage.train for stage in self.stages)
        if trains and self.adapter is None:
            raise PalError("stages: 'llm.adapter' trains an adapter, but the recipe has none; write `adapter: {type: lora}`")
        if self.adapter is not None and not trains:
            warnings.warn("adapter: no stage trains 'llm.adapter', so it has no effect", stacklevel=2)
        if self.adapter is not None and self.adapter.type == "qlora":
            self._fits_four_bit()
        if isinstance(self.data, DataConfig | MixConfig):
            known = ["scenes", *self.data.tasks, *(["more"] if getattr(self.data, "more_questions", 0) else [])]
        else:
            known = [source.title for source in self.data.train]
        texts = [source.title for source in getattr(self.data, "train", ()) if isinstance(source, TextSourceConfig)]
        others = [stage.objective for stage in self.stages if stage.objective != "answer"]
        if self.unreadable_clips == "skip" and others:
            raise PalError(f"unreadable_clips: skip is for stages with objective answer; this recipe has {others[0]}")
        for stage in self.stages if isinstance(self.data, ShardsConfig) else ():
            if stage.objective != "answer":
                raise PalError(
                    f"stage {stage.name!r}: objective {stage.objective} has to see all examples first; use type: manifests"
                )
            if stage.by_budget:
                raise PalError(f"stage {stage.name!r}: a stream makes batches of a number of examples; give `batch_size`")
        for stage in self.stages:
            unknown = [name for name in stage.sources or () if name not in known]
            if unknown:
                raise PalError(f"stage {stage.name!r}: no source is called {unknown[0]!r}; there are {', '.join(known)}")
            silent = [name for name in stage.sources or known if name in texts]
            if silent and stage.objective != "text":
                mend = "name the others in its `sources`, or give it objective: text"
                raise PalError(f"stage {stage.name!r}: source {silent[0]!r} is plain text, it has no {stage.objective}; {mend}")
        return self

    @model_validator(mode="after")
    def _model_fits(self) -> "Recipe":
        for stage in self.stages:
            where, model = f"stage {stage.name!r}: objective {stage.objective}", self.model
            if stage.objective == "answer" and not model.is_whole:
                raise PalError(f"{where} needs a whole model: give model.preset (with `encoder`), or `encoders` and `streams`")
            if stage.objective in ("answer", "text") and model.llm is None:
                raise PalError(f"{where} needs a language model: name model.llm")
            if not stage.of_encoder:
                continue
            names = list(model.encoder_configs())
            if not names:
                raise PalError(f"{where} needs an encoder: name model.encoder")
            if stage.encoder is None and len(names) > 1:
                raise PalError(f"{where} trains one encoder: write `encoder:` and one of {', '.join(names)}")
            if stage.encoder is not None and stage.encoder not in names:
                raise PalError(f"{where}: no encoder is called {stage.encoder!r}; there are {', '.join(names)}")
            if self.frame_cache is not None:
                raise PalError(f"{where} trains an encoder, but frame_cache holds frames of frozen ones; take one of them out")
        return self

    def num_workers(self, stage: Stage) -> int:
        """Worker processes of a stage: where the recipe does not say it, by the cores (`reading_workers`) where sound is read.

        One where frames are read instead: it is faster than any step, but what it does would add to each.
        """
        if self.workers is not None or (stage.objective != "text" and self.frame_cache is None):
            return reading_workers(self.workers)
        return 0 if stage.objective == "text" else min(1, reading_workers(None))

    def _fits_four_bit(self) -> None:
        for stage in self.stages:
            if (part := next((part for part in QLORA_FROZEN if part in stage.train), None)) is not None:
                raise PalError(f"stage {stage.name!r}: {frozen_by_qlora(part)}")


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe with its bases (see `overlay`) and change it.

    Args:
        path: a YAML file.
        overrides: `a.b=value`, the value as YAML; a number in the path counts list entries from 0.

    Raises:
        PalError: the file cannot be read, or a key or value is wrong.
    """
    content = _content(Path(path), overrides)
    if says_data_alone(content):
        raise PalError(f"{Path(path).name} says data alone: compose it by `pal data mix`, or take it as another recipe's `base`")
    return parse_config(TypeAdapter(Recipe), content, f"{Path(path).name}: recipe")


def load_data(path: str | Path, overrides: list[str] | None = None) -> DataConfig | MixConfig | ManifestsConfig | ShardsConfig:
    """Read the `data` of a recipe, or of one that says data alone; see `load_recipe`."""
    content = _content(Path(path), overrides)
    if says_data_alone(content):
        return parse_config(TypeAdapter(DataRecipe), content, f"{Path(path).name}: recipe").data
    return parse_config(TypeAdapter(Recipe), content, f"{Path(path).name}: recipe").data


def says_data_alone(content: dict[str, Any]) -> bool:
    """Whether a recipe has data and nothing that trains."""
    return "data" in content and not {"model", "stages"} & content.keys()


def _content(path: Path, overrides: list[str] | None) -> dict[str, Any]:
    content = read_recipe(path)
    for override in overrides or []:
        _override(content, override)
    return content


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise PalError(f"--set {override!r}: write it as a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PalError(f"--set {override!r}: the value is not YAML") from error
    place: Any = content
    for number, key in enumerate(keys):
        last = number == len(keys) - 1
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                raise PalError(f"--set {override!r}: {key!r} is no entry of a list of {len(place)}")
            step: Any = int(key)
        elif isinstance(place, dict):
            step = key
            if not last and place.get(step) is None:
                place[step] = {}
        else:
            raise PalError(f"--set {override!r}: {'.'.join(keys[:number])} has no parts")
        if last:
            place[step] = value
        else:
            place = place[step]
