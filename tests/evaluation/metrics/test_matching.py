"""Free text to labels by text embedding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.matching import (
    EMPTY_SCORE,
    BagOfWordsEmbedder,
    MeanPoolingEmbedder,
    answer_text,
    best_labels,
    label_scores,
    label_text,
)

LABELS = ["dog", "crying_baby", "sea_waves"]


class Planted:
    """Gives each text the vector that the test says."""

    name = "planted"

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([self.vectors[text] for text in texts])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Audio caption: A Dog barks.", "sound of a dog barks."),
        ('Audio caption: "At 3:05 a dog barks"', "sound of at 3:05 a dog barks"),
        ("Label: Dog", "sound of dog"),
        ("Sounds: a dog; scene: A Park", "sound of a park"),
        ("A dog", "sound of a dog"),
        ("", ""),
        ("Audio caption: ...", ""),
    ],
)
def test_answers_are_prepared_as_ltu_does(answer: str, text: str) -> None:
    assert answer_text(answer) == text


def test_labels_are_prepared_as_ltu_does() -> None:
    assert label_text("Crying_Baby") == "sound of crying baby"
    assert label_text("bird chirping_ tweeting", underscore=", ") == "sound of bird chirping, tweeting"


def test_scores_are_cosines() -> None:
    vectors = {
        "sound of dog": [2.0, 0.0],
        "sound of crying baby": [0.0, 3.0],
        "sound of sea waves": [-1.0, 0.0],
        "sound of a bark": [4.0, 3.0],
    }
    embedder = Planted(vectors)
    scores = label_scores(["A bark", "", "a bark"], LABELS, embedder)
    assert scores == pytest.approx(np.array([[0.8, 0.6, -0.8], [EMPTY_SCORE] * 3, [0.8, 0.6, -0.8]]))
    assert embedder.asked.count("sound of a bark") == 1
    assert best_labels(scores) == [0, None, 0]


def test_a_tie_is_no_answer() -> None:
    assert best_labels(np.array([[0.5, 0.5, 0.1], [0.0, 0.0, 0.0], [0.1, 0.2, 0.3]])) == [None, None, 2]
    assert best_labels(np.array([[EMPTY_SCORE], [0.1]])) == [None, 0]


def test_bag_of_words() -> None:
    embedder = BagOfWordsEmbedder(LABELS)
    assert embedder.name == "bag-of-words (not comparable)"
    scores = label_scores(["A dog barks", "the sound of a baby", "sounds of a violin", "waves and sea"], LABELS, embedder)
    assert best_labels(scores) == [0, 1, None, 2]
    assert scores[0] == pytest.approx([1 / np.sqrt(2), 0, 0])
    assert scores[3] == pytest.approx([0, 0, 1])


def test_unsuitable_vectors_are_refused() -> None:
    class Odd:
        name = "odd"

        def __init__(self, vectors: np.ndarray) -> None:
            self.vectors = vectors

        def embed(self, texts: Sequence[str]) -> np.ndarray:
            return self.vectors

    for vectors in (np.zeros((2, 4)), np.zeros(1), np.full((1, 4), np.nan)):
        with pytest.raises(PalError, match="odd: gave vectors of shape"):
            label_scores(["cat"], ["dog"], Odd(vectors))


@pytest.mark.parametrize("labels", [[], ["dog", "Dog"], ["sea waves", "sea_waves"]])
def test_labels_must_differ(labels: list[str]) -> None:
    with pytest.raises(PalError, match="different labels"):
        label_scores(["dog"], labels, BagOfWordsEmbedder(labels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    (folder / "vocab.txt").write_text("\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] sound of dog barks a . ,".split()))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=12, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


def test_mean_pooling_is_the_mean_over_a_texts_own_tokens(folder: Path) -> None:
    embedder = MeanPoolingEmbedder(folder, batch_size=2)
    assert embedder.name == f"mean pooling of {folder.name}"
    texts = ["sound of a dog", "dog", "dog barks . dog", "a " * 40]
    vectors = embedder.embed(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(texts, vectors, strict=True):  # alone, so there is no padding
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state[0].mean(0)
        assert vector == pytest.approx(expected.numpy(), abs=1e-6)


def test_mean_pooling_can_leave_punctuation_out(folder: Path) -> None:
    without, plain = MeanPoolingEmbedder(folder, remove_punctuation=True), MeanPoolingEmbedder(folder)
    assert without.name != plain.name
    assert without.embed(["a dog ."]) == pytest.approx(plain.embed(["a dog"]))
    assert plain.embed(["a dog ."]) != pytest.approx(plain.embed(["a dog"]))


def test_matching_with_a_model(folder: Path) -> None:
    scores = label_scores(["Audio caption: dog", "barks"], ["dog", "barks"], MeanPoolingEmbedder(folder))
    assert best_labels(scores) == [0, 1]
    assert scores[0, 0] == pytest.approx(1)


def copy(folder: Path, to: Path, *names: str) -> Path:
    to.mkdir()
    for name in names:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def test_only_folders_with_safetensors_are_taken(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PalError, match=r"has no config\.json"):
        MeanPoolingEmbedder(tmp_path / "nothing")
    pickled = copy(folder, tmp_path / "pickled", "config.json", "tokenizer.json")
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(PalError, match=r"has no \*\.safetensors"):
        MeanPoolingEmbedder(pickled)
    with pytest.raises(PalError, match=r"has no tokenizer\.json"):
        MeanPoolingEmbedder(copy(folder, tmp_path / "wordless", "config.json", "model.safetensors"))


def test_broken_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path / "broken", "config.json", "tokenizer.json", "model.safetensors")
    weights = load_file(broken / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "pooler" not in name}, broken / "model.safetensors", {"format": "pt"}
    )
    assert MeanPoolingEmbedder(broken).embed(["a dog"]) == pytest.approx(MeanPoolingEmbedder(folder).embed(["a dog"]))
    save_file(
        {name: weight for name, weight in weights.items() if "layer.1" not in name},
        broken / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(PalError, match=r"lacks 16 weights .* encoder\.layer\.1"):
        MeanPoolingEmbedder(broken)
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(PalError, match="cannot be loaded"):
        MeanPoolingEmbedder(broken)
