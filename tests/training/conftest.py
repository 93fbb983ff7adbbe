"""The recipe of a run that ends within a second."""

from pathlib import Path

import pytest

RECIPE = """
name: tiny
model:
  preset: pal
  encoder: {type: conv, num_mels: 16, channels: [4, 8], time_strides: [4, 2], hidden_size: 16, num_layers: 1, num_heads: 2}
  summary: {type: pool, num_tokens: 2}
  llm: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
        num_key_value_heads: 2, max_position_embeddings: 512, tokenizer: {vocab_size: 300}}
data: {num_train: 24, num_test: 6, seconds: 2.0}
stages:
  - {name: first, train: {connector: 1e-3, projector: 1e-3, llm: 1e-3}, steps: 6, batch_size: 4, save_every: 2}
  - {name: second, train: {encoder: 1e-3}, steps: 4, batch_size: 4, save_every: 3}
"""


@pytest.fixture(scope="session")
def recipe_text() -> str:
    return RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path
