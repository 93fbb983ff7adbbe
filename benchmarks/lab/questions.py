"""What every arm is asked: the held-out scenes of the world, parted once, and its held-out recordings as they are.

    OUT/tests/exact.jsonl     questions with a short answer: right or wrong, word for word
    OUT/tests/clips.jsonl     those of them about a single recording as it is
    OUT/tests/words.jsonl     digit strings and captions: errors over words
    OUT/tests/curve.jsonl     others, by which learning rates are chosen and learning curves drawn; they count in no score
    OUT/tests/index.json      ids of each task, the recordings they stand on, groups, slices; written last

Which question goes where is told by its id alone. Source: our choice.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_audio.data import MixConfig
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, read_manifest, write_manifest, write_text
from pal_audio.data.mix import read_mix
from pal_audio.data.mixing.reading import read_catalogue
from pal_audio.errors import PalError

GROUP_OF = {
    "classify": "general sound", "presence": "general sound", "background": "general sound", "first": "order", "last": "order",
    "before": "order", "after": "order", "transcribe": "speech", "caption": "captions", "count": "counting", "pitch": "pitch",
    "higher": "pitch", "clip": "single recordings",
}  # fmt: skip
"""What a kind of task of `pal data mix` is a measure of."""
CLIP_TASK = {"kind": "clip", "categories": []}
IN_WORDS = ("transcribe", "caption")
_CURVE_SHARE = 8  # one question in so many
_MAX_CURVE = 400
_NEAR_DB = 2.5


def write_tests(world: Path, out: Path, roots: Sequence[Path], most: int) -> dict[str, Any]:
    """Part the world's held-out scenes into what is asked.

    Args:
        world: a finished folder of `pal data mix`.
        out: OUT/tests.
        roots: folders that sound may lie in beside the world.
        most: questions of a task; its first ones, among which answers are as balanced as among all.

    Returns:
        The index.
    """
    config = read_mix(world).config
    if not isinstance(config, MixConfig):
        raise PalError(f"{world} is no `type: mix`; the lab's world is made by recipes/lab/world.yaml")
    tasks = config.model_dump(mode="json")["tasks"]
    examples = read_manifest(world / "test.jsonl", roots)
    curve, rest = _parted(examples)
    num_of: Counter[str] = Counter()
    asked = []
    for example in rest:
        num_of[example.task] += 1
        if num_of[example.task] <= most:
            asked.append(example)
    clips = _single_clips(config, examples)
    tasks |= {example.task: CLIP_TASK for example in clips}
    asked += clips
    by_task: dict[str, list[Example]] = defaultdict(list)
    for example in asked:
        by_task[example.task].append(example)
    index: dict[str, Any] = {"tasks": {name: described(tasks[name], found) for name, found in by_task.items()}}
    index["hash"] = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()[:16]
    out.mkdir(parents=True, exist_ok=True)
    for name, chosen in (
        ("curve", curve),
        ("exact", [example for example in asked if tasks[example.task]["kind"] not in IN_WORDS]),
        ("words", [example for example in asked if tasks[example.task]["kind"] in IN_WORDS]),
    ):
        if not chosen:
            raise PalError(f"{world}: no held-out question for {name}.jsonl; give the world's recipe a larger num_test")
        write_manifest(out / f"{name}.jsonl", chosen)
    write_manifest(out / "clips.jsonl", clips)
    write_text(out / "index.json", json.dumps(index) + "\n")
    return index


def _single_clips(config: MixConfig, examples: Sequence[Example]) -> list[Example]:
    """Each held-out recording as it is, where a task asks what one of its category is; asked in that task's own words."""
    asked: dict[str, str] = {}
    for name, task in config.tasks.items():
        if task.kind == "classify" and len(task.categories or ()) == 1:
            wordings = sorted({example.question for example in examples if example.task == name})
            if wordings:
                asked[task.categories[0]] = wordings[0]
    found = []
    for clip in read_catalogue(config).clips["test"]:
        if clip.category in asked and clip.path:
            audio = AudioPart(path=clip.path, start_s=clip.start_s, end_s=clip.end_s)
            prompt = Message(role="user", content=[audio, TextPart(text=asked[clip.category])])
            answer = Message(role="assistant", content=clip.label)
            meta = {"events": [{"clip": clip.group or clip.id, "held_out": clip.held_out}]}
            found.append(Example(id=f"clip/{clip.id}", messages=[prompt, answer], task=f"{clip.category} clips", meta=meta))
    return found


def _parted(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Those of the curve, and those that are asked."""
    ranked: dict[str, list[tuple[str, Example]]] = defaultdict(list)
    for example in examples:
        ranked[example.task].append((hashlib.sha256(example.id.encode()).hexdigest(), example))
    most = max(1, _MAX_CURVE // len(ranked))
    curve = []
    for found in ranked.values():
        found.sort(key=lambda item: item[0])
        curve += [example for _, example in found[: min(most, -(-len(found) // _CURVE_SHARE))]]
    taken = {example.id for example in curve}
    return curve, [example for example in examples if example.id not in taken]


def described(task: dict[str, Any], examples: Sequence[Example]) -> dict[str, Any]:
    """What an index says of a task.

    Args:
        task: its `kind` and `categories`, as in the world's recipe.
        examples: what is asked.
    """
    kind = task["kind"]
    group = "single digits" if kind == "classify" and task["categories"] == ["digit"] else GROUP_OF[kind]
    answers = [example.answer for example in examples]
    guess = None if kind in IN_WORDS else max(answers.count(answer) for answer in set(answers)) / len(answers)
    return {
        "kind": kind,
        "group": group,
        "metric": "errors" if kind in IN_WORDS else "accuracy",
        "best_guess": guess,
        "ids": [example.id for example in examples],
        "sources": [_recording(example) for example in examples],
        "slices": _slices(examples) if kind == "transcribe" else {},
    }


def _recording(example: Example) -> str:
    """The recording that a scene of one sound stands on; a scene of several stands for itself."""
    events = example.meta.get("events", [])
    clips = {str(event.get("clip", "")) for event in events}
    return clips.pop() if len(events) == 1 and "" not in clips else example.id


def _slices(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Numbers of the strings by who speaks and how loud the background is."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        unseen = any(event.get("held_out") for event in example.meta.get("events", []))
        found["unseen speaker" if unseen else "known speakers"].append(number)
        snr_db = example.meta.get("snr_db")
        if snr_db is None:
            found["no background"].append(number)
        elif abs(float(snr_db) - 5) <= _NEAR_DB:
            found["background 2.5 to 7.5 dB below"].append(number)
    return dict(found)


def read_index(out: Path) -> dict[str, Any]:
    """OUT/tests/index.json, or the copy that travels with the results.

    Raises:
        PalError: neither is there.
    """
    for path in (out / "tests" / "index.json", out / "results" / "index.json"):
        if path.is_file():
            return read_json(path)
    raise PalError(f"{out}: no tests/index.json here, so there are no results to read; begin with `python -m benchmarks.lab run`")


def read_json(path: Path) -> dict[str, Any]:
    """An object out of a file of the lab.

    Raises:
        PalError: it is not there or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError
        return content
    except OSError as error:
        raise PalError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PalError(f"{path}: damaged, it is not JSON; delete it and run the lab again") from error


def options_of(folder: Path) -> list[str]:
    """Options by which `pal eval` asks all that lies in a folder of tests."""
    data = {name: folder / f"{file}.jsonl" for name, file in (("answers", "exact"), ("transcription", "words"))}
    options = [word for name, path in data.items() for word in ("--data", f"{name}={os.fspath(path)}")]
    return ["--tasks", ",".join(data), *options, "--conditions", "real"]
