"""Pictures of an evaluation: confusion matrices, and accuracy by group (domain, difficulty, speaker, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_MAX_NAMED = 60  # labels at the axes; with more they could not be read
_MAX_GROUPS = 40


def draw(scores: dict[str, Any], folder: Path) -> dict[str, list[str]] | None:
    """Draw what there is to draw.

    Args:
        scores: of scores.json.
        folder: where pictures go.

    Returns:
        File names by task; None, and nothing drawn, where matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return None
    made: dict[str, list[str]] = {}
    for name, task in scores["tasks"].items():
        made[name] = []
        for method, found in task["methods"].items():
            if "confusion" in found:
                made[name].append(_confusion(f"{name}, {method}", found["confusion"], folder / f"{name}-{method}-confusion.png"))
            if found.get("breakdown"):
                made[name].append(_groups(f"{name}, {method}", found, folder / f"{name}-{method}-groups.png"))
    return made


def _confusion(title: str, confusion: dict[str, Any], path: Path) -> str:
    from matplotlib.figure import Figure

    labels, counts = confusion["labels"], confusion["counts"]
    size = min(24.0, 3 + 0.3 * len(labels))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(counts, cmap="Blues")
    figure.colorbar(image, ax=axis, label="items")
    axis.set_title(title, parse_math=False)
    axis.set_xlabel("answered")
    axis.set_ylabel("truth")
    if len(labels) <= _MAX_NAMED:
        axis.set_xticks(range(len(labels) + 1), [*labels, "(unparsable)"], rotation=90, parse_math=False)
        axis.set_yticks(range(len(labels)), labels, parse_math=False)
    figure.savefig(path, dpi=100)
    return path.name


def _groups(title: str, found: dict[str, Any], path: Path) -> str:
    from matplotlib.figure import Figure

    keys = list(found["breakdown"])
    figure = Figure(figsize=(4.5 * len(keys), 4), layout="constrained")
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        groups = dict(list(found["breakdown"][key].items())[:_MAX_GROUPS])
        places = range(len(groups))
        scores = [group["score"] for group in groups.values()]
        bounds = [group["interval"] or [group["score"]] * 2 for group in groups.values()]
        errors = [
            [max(0.0, score - low) for score, (low, _) in zip(scores, bounds, strict=True)],
            [max(0.0, high - score) for score, (_, high) in zip(scores, bounds, strict=True)],
        ]
        axis.barh(places, scores, xerr=errors, color="steelblue", ecolor="black", capsize=2)
        names = [f"{name} ({group['num']})" for name, group in groups.items()]
        axis.set_yticks(places, names, parse_math=False)
        axis.invert_yaxis()
        axis.set_title(key, parse_math=False)
        axis.set_xlabel(found["headline"])
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=100)
    return path.name
