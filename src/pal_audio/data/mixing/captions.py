"""Captions that can be read back.

    caption := group {", then " group}      in the order in which they begin
    group   := clause | clause " while " clause      the second begins before the first ends

Source: our choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pal_audio.errors import PalError

THEN, WHILE = ", then ", " while "


def caption(groups: Sequence[Sequence[str]], clauses: Mapping[str, str]) -> str:
    """Write groups of one or two labels as a caption; `clauses` by label."""
    return THEN.join(WHILE.join(clauses[label] for label in group) for group in groups)


def parse_caption(text: str, clauses: Mapping[str, str]) -> list[list[str]]:
    """Read a caption back to groups of labels.

    Raises:
        PalError: a part of it is no clause, or more than two sound together.
    """
    labels = {clause: label for label, clause in clauses.items()}
    groups = []
    for part in text.split(THEN):
        group = part.split(WHILE)
        unknown = [clause for clause in group if clause not in labels]
        if unknown or len(group) > 2:
            raise PalError(f"no caption of these sounds: {text!r}, at {(unknown or [part])[0]!r}")
        groups.append([labels[clause] for clause in group])
    return groups


def check_clauses(clauses: Mapping[str, str]) -> None:
    """Raise PalError where two labels read the same, or a clause holds a word of the grammar."""
    seen: dict[str, str] = {}
    for label, clause in clauses.items():
        if any(word in clause for word in (THEN, WHILE)) or not clause.strip():
            raise PalError(f"clause {clause!r} of {label!r} must be words without {THEN.strip()!r} and {WHILE.strip()!r}")
        if clause in seen:
            raise PalError(f"{seen[clause]!r} and {label!r} both read {clause!r} in captions; change one by `clauses`")
        seen[clause] = label
