"""Presets: the streams that a name stands for, so that one word switches the integration."""

from typing import Any

from pal_audio.errors import PalError

PRESETS = ("plits", "lal", "pal", "flamingo")


def preset(
    name: str,
    encoder: dict[str, Any],
    connector: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    lal: dict[str, Any] | None = None,
    flamingo: dict[str, Any] | None = None,
    **shared: Any,
) -> dict[str, Any]:
    """The `AudioConfig` dict of a named preset with one encoder.

    Args:
        name: "plits", "lal", "pal" or "flamingo".
        encoder: the encoder's options.
        connector: of the full sequence; default: an MLP without stacking.
        summary: connector of the summary tokens ("pal" only); default: 16 queries, the paper's kind.
        lal: options of the LAL stream (layers, projector, rank).
        flamingo: options of the Flamingo stream (layers, attends, num_heads, ffn_factor).
        **shared: `positions`, `summary_sees_audio`.

    Source: arXiv 2506.10423v3 for the first three, arXiv 2204.14198 for the last; the default of 16 queries is our choice.
    """
    full = {"encoder": "audio", "connector": connector or {"type": "mlp"}}
    by_plits = {"type": "plits"}
    by_lal = {"type": "lal", **(lal or {})}
    if name == "plits":
        streams = [{**full, "integration": by_plits}]
    elif name == "lal":
        streams = [{**full, "integration": by_lal}]
    elif name == "pal":
        short = {"encoder": "audio", "connector": summary or {"type": "qformer", "queries": 16}, "integration": by_plits}
        streams = [{**full, "integration": by_lal}, short]
    elif name == "flamingo":
        streams = [{**full, "integration": {"type": "flamingo", **(flamingo or {})}}]
    else:
        raise PalError(f"preset {name!r} is unknown; there are {', '.join(PRESETS)}")
    unused = {
        "summary": summary if name != "pal" else None,
        "lal": lal if name in ("plits", "flamingo") else None,
        "flamingo": flamingo if name != "flamingo" else None,
    }
    for option, value in unused.items():
        if value is not None:
            raise PalError(f"preset {name!r} has no part that `{option}` could set; remove it")
    return {"encoders": {"audio": encoder}, "streams": streams, **shared}
