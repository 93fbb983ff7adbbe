"""Free text to labels by nearest text embedding: LTU's protocol for classification.

The score depends on the embedder: print its `name` beside every number, and never compare numbers of two embedders.

Shape suffixes: N texts, C labels, D width.
"""

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pal_audio.errors import PalError

EMPTY_SCORE = -1.0  # the least that a cosine can be: an answer without text ranks below every other

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # without one, an empty tokenizer would be made up
_PREFIX = "sound of "
_WITHOUT_MEANING = frozenset(
    "a an and are as at be by for from in into is it its of on or s sound sounds the then there to while with".split()
)
_WORD = re.compile(r"[^\W_]+")


class TextEmbedder(Protocol):
    """Gives texts a place in a space where near means alike."""

    @property
    def name(self) -> str:
        """What to print beside a score."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Vectors of texts, (N, D). D and the vector of a text are the same in every call; a zero vector is like nothing."""


def answer_text(answer: str) -> str:
    """An answer as it is embedded: what follows "Audio caption" or else the last ":", in lower case, after "sound of ".

    Source: LTU, `eval/eval_vggsound.py` and `eval/eval_esc.py`, which strip in these two ways. Ours where they differ: a
    caption is marked by the first way if it can be, so that a ":" inside it cuts nothing off. An answer without a word gives
    "".
    """
    text = answer.replace('"', "")
    marked = re.split(r"audio caption\s*:?", text, flags=re.IGNORECASE)
    text = (marked[-1] if len(marked) > 1 else text.rpartition(":")[2]).strip().lower()
    return _PREFIX + text if _WORD.search(text) else ""


def label_text(label: str, underscore: str = " ") -> str:
    """A label as it is embedded: lower case, after "sound of ".

    Args:
        label: a class's name.
        underscore: what "_" stands for: a space, and in VGGSound's own label file ", " for "_ ".

    Source: LTU, `eval/`. (Its script for VGGSound writes ",  " with two spaces there; here runs of spaces are one.)
    """
    return _PREFIX + " ".join(label.replace("_", underscore).lower().split())


def label_scores(
    answers: Sequence[str], labels: Sequence[str], embedder: TextEmbedder, underscore: str = " "
) -> NDArray[np.float64]:
    """Cosine similarity of every answer to every label, for ranking or mean average precision.

    Args:
        answers: as the model gave them.
        labels: classes' names, all different.
        embedder: gives the vectors.
        underscore: see `label_text`.

    Returns:
        (N, C), -1 to 1. The row of an answer without a word is `EMPTY_SCORE` throughout.

    Raises:
        PalError: No or repeated labels, or vectors that are not finite or of another shape than promised.
    """
    names = [label_text(label, underscore) for label in labels]
    if not names or len(set(names)) != len(names):
        raise PalError(f"label matching needs different labels, got {len(names)} with {len(set(names))} different texts")
    label_CD = _unit(embedder, names)
    texts = [answer_text(answer) for answer in answers]
    scores_NC = np.full((len(texts), len(names)), EMPTY_SCORE)
    distinct = sorted({text for text in texts if text})
    if distinct:
        similarity = dict(zip(distinct, _unit(embedder, distinct) @ label_CD.T, strict=True))
        for row, text in zip(scores_NC, texts, strict=True):
            if text:
                row[:] = similarity[text]
    return scores_NC


def best_labels(scores_NC: NDArray[np.float64]) -> list[int | None]:
    """Index of the nearest label of each answer; None where the answer was empty or the best score is shared.

    Source: our choice; LTU takes the first of equals, which gives an answer like none of the labels to the first class.
    """
    best = []
    for row in scores_NC:
        winners = np.flatnonzero(row >= row.max() - 1e-12)
        best.append(int(winners[0]) if len(winners) == 1 and row.max() > EMPTY_SCORE else None)
    return best


class BagOfWordsEmbedder:
    """Counts the labels' words; knows no synonyms. For where no embedding model is at hand.

    Args:
        labels: classes' names; their words are the D - 1 axes, and every other word lies on the last.
    """

    name = "bag-of-words (not comparable)"

    def __init__(self, labels: Sequence[str]) -> None:
        words = sorted({word for label in labels for word in _words(label)})
        self._axis = {word: index for index, word in enumerate(words)}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Word counts (N, D) without words that say nothing about a sound, "sound of" among them."""
        counts_ND = np.zeros((len(texts), len(self._axis) + 1))
        for row, text in zip(counts_ND, texts, strict=True):
            for word in _words(text):
                row[self._axis.get(word, len(self._axis))] += 1
        return counts_ND


class MeanPoolingEmbedder:
    """Mean over tokens of a transformers encoder's last hidden states, as Sentence-BERT does.

    Args:
        folder: of a local model: config.json, tokenizer files and safetensors. Nothing is downloaded, unpickled or run from it.
        device: torch device.
        batch_size: texts at once.
        max_tokens: longer texts are cut.
        remove_punctuation: before embedding, as LTU does for BERT; Sentence-BERT keeps it.

    Raises:
        PalError: The folder is not such a model.

    Source: Reimers and Gurevych, "Sentence-BERT", section 3; LTU, `eval/`, option "bert".
    """

    def __init__(
        self, folder: Path, device: str = "cpu", batch_size: int = 32, max_tokens: int = 512, remove_punctuation: bool = False
    ) -> None:
        folder = Path(folder)
        for needed in (("config.json",), ("*.safetensors",), _TOKENIZER_FILES):
            if not any(file.is_file() for pattern in needed for file in folder.glob(pattern)):
                raise PalError(f"{folder} is no text-embedding model: it has no {' or '.join(needed)}")
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            self._model, report = AutoModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise PalError(f"{folder} cannot be loaded as a text-embedding model: {reason}") from error
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)  # the mean does not go through it
        if missing:
            raise PalError(f"{folder} lacks {len(missing)} weights of a text-embedding model, such as {missing[0]}")
        self._model = self._model.float().eval().to(device)
        limits = (
            max_tokens,
            self._tokenizer.model_max_length,
            getattr(self._model.config, "max_position_embeddings", max_tokens),
        )
        self._max_tokens = min(int(limit) for limit in limits)
        self._batch_size, self._remove_punctuation = batch_size, remove_punctuation
        self.name = f"mean pooling of {folder.resolve().name}" + (", no punctuation" if remove_punctuation else "")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Means (N, D) over each text's own tokens, special ones included."""
        import torch

        if self._remove_punctuation:
            texts = [text.translate(str.maketrans("", "", string.punctuation)) for text in texts]
        means: list[NDArray[np.float64]] = []
        for start in range(0, len(texts), self._batch_size):
            inputs = self._tokenizer(
                list(texts[start : start + self._batch_size]),
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                states_BLD = self._model(**inputs).last_hidden_state.double()
            mask_BL1 = inputs["attention_mask"].unsqueeze(-1)
            means.append(((states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)).cpu().numpy())
        return np.concatenate(means)


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.replace("_", " ").lower()) if word not in _WITHOUT_MEANING]


def _unit(embedder: TextEmbedder, texts: Sequence[str]) -> NDArray[np.float64]:
    """Vectors of length 1; a zero vector stays zero, and its cosine with anything is 0."""
    vectors_ND = np.asarray(embedder.embed(texts), dtype=np.float64)
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(texts) or not np.isfinite(vectors_ND).all():
        raise PalError(
            f"{embedder.name}: gave vectors of shape {vectors_ND.shape} for {len(texts)} texts, or ones that are not finite"
        )
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(norms_N1 == 0, 1, norms_N1)
