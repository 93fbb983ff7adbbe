"""The lab's recipes: which arms there are, what each builds on, and what the lab changes in them.

Paths inside the recipes count from OUT: `runs/lab-lm/llm`, `runs/lab-encoder-NAME/encoders/audio`, `world/train.jsonl`, where
`world` is the name of the mix's recipe too.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pal_audio.errors import PalError
from pal_audio.training.overlay import read_recipe

PLITS = "plits"
ARMS = (
    PLITS, "plits-pooled", "lal", "lal-frozen-ffn", "lal-frozen-llm", "pal", "pal-ordered", "pal-multi", "flamingo", "blind",
)  # fmt: skip
SWEPT = (PLITS, "lal", "pal", "flamingo")
"""Arms whose learning rates are tried; the others take the rate of the one that sound enters like."""
LONG_FIRST = ("plits-multi", "plits", "pal-multi", "flamingo", "pal-ordered", "pal", "lal")
"""Arms that take long, to be begun first."""
FACTORS = (0.35, 0.7, 1.4)
"""Three times a rate ended LAL and PAL in gradients that are no numbers and cost PLITS a third of its answers (dev/LOG.md)."""
_MADE = re.compile(r"(?:^|/)runs/(lab-[\w-]+)/(?:llm|encoders/[\w-]+)$")
ENCODER, BUNDLE_ENCODER = "lab-encoder-", "bundle-encoder-"
_CURVE_POINTS = 5
_TINY_STEPS = 8
_CURVE_EXAMPLES, _CURVE_ANSWERS = 256, 96

TINY_LLM = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "tokenizer": {"vocab_size": 300},
}  # fmt: skip
TINY_CONV = {
    "type": "conv", "num_mels": 16, "channels": [4, 8], "time_strides": [4, 2], "hidden_size": 16, "num_layers": 1,
    "num_heads": 2,
}  # fmt: skip


@dataclass(frozen=True)
class LabRecipe:
    """A recipe file of the lab.

    Attributes:
        name: of the file.
        path: of the file.
        tiny: shrink it so that it runs within seconds on a CPU.
        steps: of each stage of an arm, where it is not the recipe's own number.
        compiled: arms train under `compile: true`.
    """

    name: str
    path: Path
    tiny: bool = False
    steps: int | None = None
    compiled: bool = False

    @cached_property
    def content(self) -> dict[str, Any]:
        return read_recipe(self.path)

    @property
    def model(self) -> dict[str, Any]:
        return dict(self.content.get("model", {}))

    @property
    def bases(self) -> list[str]:
        """Runs of the lab whose results its model is built on."""
        found = [match[1] for text in _texts(self.model) if (match := _MADE.search(text))]
        return sorted(set(found))

    @property
    def worlds(self) -> list[str]:
        """Recipes of the mixes that its data names by their folders; `world` where it names none."""
        data = self.content.get("data", {})
        sources = [source for side in ("train", "test") for source in _listed(data.get(side))]
        paths = [source.get("path") if isinstance(source, dict) else source for source in sources]
        folders = dict.fromkeys(Path(path).parts[0] for path in paths if isinstance(path, str) and len(Path(path).parts) > 1)
        return [name for name in folders if (self.path.parent / f"{name}.yaml").is_file()] or ["world"]

    @property
    def encoders(self) -> list[str]:
        """Names of the lab's encoders that it hears by."""
        return [name.removeprefix(ENCODER) for name in self.bases if name.startswith(ENCODER)]

    @property
    def product(self) -> str:
        """Folder of its run that others build on, of a recipe that makes an encoder or the language model."""
        return "encoders" if self.name.startswith("encoder-") else "llm"

    @property
    def family(self) -> str:
        """The arm of `SWEPT` that sound enters like.

        Raises:
            PalError: it enters by none of them.
        """
        preset = self.model.get("preset")
        if preset is None:
            ways = {_type(stream.get("integration")) for stream in self.model.get("streams", [])}
            preset = ways.pop() if len(ways) == 1 else "pal" if ways == {"plits", "lal"} else None
        family = {"pal-multi": "pal", "lfst": "plits"}.get(str(preset), preset)
        if family not in SWEPT:
            raise PalError(f"{self.path}: which of {', '.join(SWEPT)} its sound enters like is not known (preset {preset!r})")
        return str(family)

    def settings(self) -> list[str]:
        """What the lab changes in every recipe that trains: nothing but its size, where it is to be tiny."""
        changes: dict[str, Any] = {"trackers": []}
        for number, stage in enumerate(self.content["stages"]) if self.tiny else ():
            place = f"stages.{number}"
            changes |= {
                f"{place}.epochs": None,
                f"{place}.steps": _TINY_STEPS,
                f"{place}.batch_size": 4,
                f"{place}.warmup_steps": 0,
            }
            dropped = [key for key in ("batch_audio_s", "batch_text_tokens", "compile", "keep") if key in stage]
            changes |= {f"{place}.{key}": _PLAIN[key] for key in dropped}
        if self.tiny:
            changes["precision"] = "float32"
            changes |= {"model.llm": TINY_LLM} if isinstance(self.model.get("llm"), dict) else {}
            changes |= {"model.encoder": TINY_CONV} if "encoder" in self.model and not self.bases else {}
        return written(changes)

    def arm_settings(self, seed: int, factor: float, frames: Path | None, roots: list[Path], held_out: Path) -> list[str]:
        """What the lab changes in an arm's recipe: seed, rates, where frames and held-out examples are, a learning curve."""
        changes: dict[str, Any] = {"seed": seed, "data.test": [str(held_out)], "data.roots": [str(root) for root in roots]}
        changes |= {"frame_cache": str(frames)} if frames is not None else {}
        for number, stage in enumerate(self.content["stages"]):
            place = f"stages.{number}"
            changes[f"{place}.train"] = {part: float(rate) * factor for part, rate in stage["train"].items()}
            changes |= {f"{place}.compile": True} if self.compiled else {}
            steps = _TINY_STEPS if self.tiny else self.steps or stage.get("steps")
            if self.steps and not self.tiny:
                changes |= {f"{place}.epochs": None, f"{place}.steps": self.steps}
            if steps is not None:
                changes[f"{place}.eval_every"] = max(1, -(-steps // _CURVE_POINTS))
                changes |= {f"{place}.eval_examples": _CURVE_EXAMPLES, f"{place}.eval_samples": _CURVE_ANSWERS}
        return [*self.settings(), *written(changes)]


_PLAIN = {"batch_audio_s": None, "batch_text_tokens": None, "compile": False, "keep": "last"}


@dataclass(frozen=True)
class Shelf:
    """The folder of the lab's recipes."""

    folder: Path
    tiny: bool = False
    steps: int | None = None
    compiled: bool = False

    def recipe(self, name: str) -> LabRecipe:
        """A recipe by its place in the folder, without ending.

        Raises:
            PalError: there is none.
        """
        path = self.folder / f"{name}.yaml"
        if not path.is_file():
            raise PalError(f"no recipe {path}; --recipes names the folder of the lab's recipes")
        return LabRecipe(Path(name).name, path.resolve(), self.tiny, self.steps, self.compiled)

    def arm(self, name: str) -> LabRecipe:
        """An arm, or an ablation that is to be one.

        Raises:
            PalError: there is neither.
        """
        for place in ("arms", "ablations"):
            if (self.folder / place / f"{name}.yaml").is_file():
                return self.recipe(f"{place}/{name}")
        raise PalError(f"no recipe {name}.yaml in {self.folder / 'arms'} or in ablations beside it; --recipes names their folder")

    def arms(self, names: list[str] | None = None) -> list[LabRecipe]:
        """Arms in the order of `ARMS`, those that are named (ablations too) or all that are there."""
        there = [path.stem for path in sorted((self.folder / "arms").glob("*.yaml"))]
        ordered = [name for name in ARMS if name in there] + [name for name in there if name not in ARMS]
        return [self.arm(name) for name in (ordered if names is None else names)]

    def ablations(self) -> list[LabRecipe]:
        return [self.recipe(f"ablations/{path.stem}") for path in sorted((self.folder / "ablations").glob("*.yaml"))]


def written(changes: dict[str, Any]) -> list[str]:
    """Changes as `--set` options; JSON is YAML."""
    return [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _type(integration: Any) -> str:
    return str(integration.get("type") if isinstance(integration, dict) else integration)
