"""Chat messages as text: markers where clips stand, and where in the text the assistant's turns are."""

from collections.abc import Callable
from typing import Any

from pal_audio.errors import PalError
from pal_audio.model.configuration import MARKER_TOKEN, SLOT_TOKEN

Message = dict[str, Any]
Conversation = list[Message]


def escape(text: str) -> str:
    """User text in which a literal marker stands for itself and not for a clip."""
    for token in (MARKER_TOKEN, SLOT_TOKEN):
        text = text.replace(token, f"< {token[1:]}")
    return text


def flatten(messages: Any) -> tuple[Conversation, list[tuple[Any, dict[str, float]]]]:
    """Messages whose content is plain text with markers, and the sources of their clips with `start_s`, `end_s`.

    Raises:
        PalError: a message or part is not understood.
    """
    if not isinstance(messages, list) or not messages:
        raise PalError("a conversation is a list of messages with `role` and `content`, at least one")
    flat: Conversation = []
    sources: list[tuple[Any, dict[str, float]]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise PalError(f"message {number}: needs `role` and `content`")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise PalError(f"message {number}: content is text or a list of parts, not {type(content).__name__}")
        stretches = [""]  # of text between clips; joined before they are escaped, lest two parts make up a marker
        for part in parts:
            if not isinstance(part, dict):
                raise PalError(f"message {number}: a part is a dict with `type`, not {type(part).__name__}")
            kind = part.get("type")
            if kind == "text":
                if not isinstance(part.get("text"), str):
                    raise PalError(f"message {number}: a text part needs `text`")
                stretches[-1] += part["text"]
            elif kind in ("audio", "audio_url", "input_audio"):
                stray = [key for key in ("encoder", "encoders") if part.get(key) is not None]
                if stray:
                    raise PalError(f"message {number}: an audio part has no key {stray[0]!r}: every encoder hears every clip")
                source = next((part[key] for key in ("path", "audio", "url", "audio_url") if part.get(key) is not None), None)
                if source is None:
                    raise PalError(f"message {number}: an audio part needs `path`, `audio` or `url`")
                sources.append((source, {key: part[key] for key in ("start_s", "end_s") if part.get(key) is not None}))
                stretches.append("")
            else:
                raise PalError(f"message {number}: part type {kind!r} is not understood; there are `text` and `audio`")
        flat.append({**message, "content": MARKER_TOKEN.join(escape(text) for text in stretches)})
    return flat, sources


def assistant_spans(messages: Conversation, text: str, render: Callable[[Conversation, bool], str]) -> list[tuple[int, int]]:
    """Character ranges of the assistant's turns, their end-of-turn token included.

    A turn begins where the generation prompt before it ends, and ends with what the template puts behind its content.
    What stands between may differ from turn to turn: some families keep a think block in the last one only.

    Args:
        messages: with plain text, see `flatten`.
        text: all of them as the template writes them.
        render: what the template writes of some messages, with the generation prompt behind them or without.

    Raises:
        PalError: the template does not let an answer be found.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if number == 0:
            raise PalError("a conversation that the assistant begins cannot be supervised; put the user's message first")
        before = render(messages[:number], True)
        through = render(messages[: number + 1], False)
        content = message["content"].strip()
        tail = through[through.rfind(content) + len(content) :].rstrip()
        at = text.find(content + tail, len(before))
        if not content or content not in through or not text.startswith(before) or at < 0:
            raise PalError(
                f"message {number}: the chat template does not show where this answer begins and ends (or it is empty), "
                "so it cannot be supervised"
            )
        spans.append((len(before), at + len(content + tail)))
    return spans
