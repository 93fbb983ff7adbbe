"""One example of a shard: from the files that share a key to an `Example` that carries its sound.

Two kinds are read: a manifest line, as `pal data shard` writes it, and a text beside sound, as others do.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pal_audio.config import one_line
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.errors import PalError

TEXTS = ("json", "txt")
# Endings that are read as sound; what lies in them is told from their bytes. Other files of a shard are passed over.
SOUNDS = frozenset(
    "flac wav mp3 ogg oga opus m4a m4b mp4 aac webm mka mkv aiff aif au caf amr wma w64 rf64 flv mov 3gp avi bin".split()
)


@dataclass(frozen=True)
class Sample:
    """The files of one example, by field: what stands after KEY and a dot."""

    shard: str
    key: str
    files: dict[str, bytes]

    def example(self, question: str | None = None) -> Example:
        """As an example with its sound attached.

        A JSON with `messages` is a manifest line whose paths name files beside it. Else the answer is the text file, or `text`
        or `caption` of the JSON (of a list, the first), the clips are all sounds in the order of their names, and the id is
        made of the shard's name and the key, since keys of others may come again in the next shard.

        Args:
            question: asked in examples of the second kind.

        Raises:
            PalError: the text is none, the sound is not there, or there is no question.
        """
        content = self._json()
        if isinstance(content, dict) and "messages" in content:
            return self._manifest_line(content)
        answer = self._text(content)
        sounds = sorted(field for field in self.files if field not in TEXTS)
        if not sounds:
            raise self.fault("a text without its sound")
        if question is None:
            raise self.fault("it holds no question; give the source a `question`, which is then asked of every clip")
        parts = [AudioPart(path=f"{self.shard}/{self.key}.{field}") for field in sounds]
        for part, field in zip(parts, sounds, strict=True):
            part.attach(self.files[field])
        asked = Message(role="user", content=[*parts, TextPart(text=question)])
        name = f"{Path(self.shard).stem}/{self.key}"
        return Example(id=name, messages=[asked, Message(role="assistant", content=answer)])

    def fault(self, what: str) -> PalError:
        """The error of this example."""
        return PalError(f"{self.shard}, example {self.key!r}: {what}")

    def _json(self) -> Any:
        if "json" not in self.files:
            return None
        try:
            return json.loads(self.files["json"].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.fault(f"its .json is not JSON ({' '.join(str(error).split())})") from error

    def _manifest_line(self, content: dict[str, Any]) -> Example:
        try:
            example = Example.model_validate(content)
        except ValidationError as error:
            raise self.fault(one_line(error)) from error
        base = self.key.rpartition("/")[2]
        for part in example.audio:
            field = part.path.removeprefix(f"{base}.").lower()
            if not part.path.startswith(f"{base}.") or field in TEXTS or field not in self.files:
                raise self.fault(f"its JSON names the sound {part.path!r}, which does not lie beside it in the shard")
            part.path = f"{self.shard}/{self.key}.{field}"
            part.attach(self.files[field])
        return example

    def _text(self, content: Any) -> str:
        text: Any = None
        if "txt" in self.files:
            try:
                text = self.files["txt"].decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise self.fault("its .txt is not UTF-8") from error
        elif isinstance(content, dict):
            text = content.get("text", content.get("caption"))
            text = text[0] if isinstance(text, list) and text else text
        if not isinstance(text, str) or not text.strip():
            raise self.fault("no text: it needs a .json with `messages`, `text` or `caption`, or a .txt")
        return text
