"""Presets: the streams that a name stands for, so that one word switches the integration."""

from typing import Any

from pal_audio.errors import PalError

SPEECH, SOUND, LANGUAGE = "speech", "sound", "language"
ROLES: dict[str, dict[str, Any]] = {
    SPEECH: {"type": "whisper", "checkpoint": "openai/whisper-small", "frozen": True},
    SOUND: {"type": "sslam", "checkpoint": "ta012/SSLAM_pretrain", "frozen": True},
    LANGUAGE: {"type": "clap", "checkpoint": "laion/clap-htsat-unfused", "frozen": True},
}
"""Encoders of presets with several, by what each is for, and what stands there unless the user names another: one of speech, a
general one that is fine-grained in time and frequency, and one that was trained to lie near language."""

ENCODERS_OF = {"pal-multi": (SPEECH, SOUND, LANGUAGE), "lfst": (LANGUAGE, SOUND)}
"""Presets with several encoders, and the roles of each; `lfst` reads them in this order."""

OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "plits": (),
    "lal": ("lal",),
    "pal": ("summary", "lal"),
    "flamingo": ("flamingo",),
    "pal-multi": ("lal",),
    "lfst": ("lal",),
}
"""Presets, and the parts of each that may be set beside encoders and connector."""

PRESETS = tuple(OPTIONS_OF)


def preset(
    name: str,
    encoder: dict[str, Any] | None = None,
    connector: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    lal: dict[str, Any] | None = None,
    flamingo: dict[str, Any] | None = None,
    encoders: dict[str, Any] | None = None,
    **shared: Any,
) -> dict[str, Any]:
    """The `AudioConfig` dict of a named preset.

    Args:
        name: "plits", "lal", "pal" or "flamingo" with one encoder; "pal-multi" or "lfst" with several.
        encoder: the one encoder's options.
        connector: of the full sequence, in "pal-multi" of each stream; default: an MLP. Of "lfst": default `{type: lfst}`.
        summary: connector of the summary tokens ("pal" only); default: 16 queries, the paper's kind.
        lal: options of the LAL streams (layers, projector, rank). "lfst" enters by LAL where this is given, else by PLITS.
        flamingo: options of the Flamingo stream (layers, attends, num_heads, ffn_factor).
        encoders: of presets with several: options by role, see `ROLES`; a role that is left out has its default.
        **shared: `positions`, `summary_sees_audio`.

    Raises:
        PalError: an unknown preset or role, or an option that the preset has no part for.

    Source: arXiv 2506.10423v3 for the first three, its v2 for "pal-multi" (Whisper by PLITS; SSLAM and CLAP by LAL) and "lfst",
    arXiv 2204.14198 for "flamingo"; the default of 16 queries, that of Whisper's size and the roles' names are our choice.
    """
    if name not in OPTIONS_OF:
        raise PalError(f"preset {name!r} is unknown; there are {', '.join(PRESETS)}")
    for option, value in {"summary": summary, "lal": lal, "flamingo": flamingo}.items():
        if value is not None and option not in OPTIONS_OF[name]:
            raise PalError(f"preset {name!r} has no part that `{option}` could set; remove it")
    heard = _encoders(name, encoder, encoders)
    by_plits, by_lal = {"type": "plits"}, {"type": "lal", **(lal or {})}
    if name == "lfst":
        full: dict[str, Any] = {"encoder": list(heard), "connector": connector or {"type": "lfst"}}
        streams = [{**full, "integration": by_plits if lal is None else by_lal}]
    elif name == "pal-multi":
        ways = {SPEECH: by_plits, SOUND: by_lal, LANGUAGE: by_lal}
        streams = [{"encoder": role, "connector": connector or {"type": "mlp"}, "integration": ways[role]} for role in heard]
    else:
        full = {"encoder": "audio", "connector": connector or {"type": "mlp"}}
        ways = {"plits": by_plits, "lal": by_lal, "pal": by_lal, "flamingo": {"type": "flamingo", **(flamingo or {})}}
        streams = [{**full, "integration": ways[name]}]
    if name == "pal":
        short = {"encoder": "audio", "connector": summary or {"type": "qformer", "queries": 16}, "integration": by_plits}
        streams.append(short)
    return {"encoders": heard, "streams": streams, **shared}


def _encoders(name: str, encoder: dict[str, Any] | None, encoders: dict[str, Any] | None) -> dict[str, Any]:
    """Options of a preset's encoders by name, in its order."""
    roles = ENCODERS_OF.get(name)
    if roles is None:
        if encoder is None or encoders is not None:
            raise PalError(f"preset {name!r} takes one `encoder`; presets with `encoders` are {', '.join(ENCODERS_OF)}")
        return {"audio": encoder}
    if encoder is not None:
        raise PalError(f"preset {name!r} has several encoders: write `encoders:` with any of {', '.join(roles)}")
    unknown = [role for role in encoders or {} if role not in roles]
    if unknown:
        raise PalError(f"preset {name!r} has encoders {', '.join(roles)}, none called {unknown[0]!r}; or write `streams`")
    given = {role: options for role, options in (encoders or {}).items() if options is not None}
    return {role: given.get(role, ROLES[role]) for role in roles}
