"""Every kind of encoder by every integration: what must always hold (docs/design.md), over windows of each encoder's own length.

The checks are those of the matrix over families; here the LLM stays and the encoder changes. Encoders have no dropout, since
packed and unpacked are compared in training mode.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.encoders.cases import CASES
from tests.model.test_invariants import ARMS, CLIPS, check_generation, check_memory, check_reference, check_saved
from tests.model.test_packing import check_packed
from tests.model.test_turns import check_sixteen_clips, check_turns
from tests.tiny import batch, message, noise, tiny_model

NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
ENCODERS: dict[str, dict[str, Any]] = {
    "conv": CASES["conv"] | {"spec_augment": False},
    "whisper": CASES["whisper"] | {"config": CASES["whisper"]["config"] | {"init_std": 0.2}},  # at 0.02 it hardly hears
    "clap": CASES["clap"] | {"config": CASES["clap"]["config"] | {"hidden_dropout_prob": 0.0}},
    "sslam": CASES["sslam"],
    "transformers": CASES["wav2vec2-layer"] | {"config": CASES["wav2vec2-layer"]["config"] | NO_DROPOUT},
    "transformers-ast": CASES["ast"],
}
every_pair = pytest.mark.parametrize(("encoder", "arm"), [(encoder, arm) for encoder in ENCODERS for arm in ARMS])


def made(encoder: str, arm: str) -> Any:
    return tiny_model("llama", arm, encoder=ENCODERS[encoder])


@every_pair
def test_it_hears(encoder: str, arm: str) -> None:
    """Else the others would say little: another sound of the same length moves the logits behind the clip."""
    model, processor = made(encoder, arm)
    with torch.no_grad():
        logits = [model(**batch(processor, [message(clip)])).logits[0, -1] for clip in (CLIPS[1], noise(1.3, 9))]
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@every_pair
def test_a_batch_with_either_padding_equals_the_reference(encoder: str, arm: str) -> None:
    check_reference(*made(encoder, arm))


@every_pair
def test_packed_equals_unpacked(encoder: str, arm: str) -> None:
    check_packed(*made(encoder, arm), checkpointing=False)


@every_pair
def test_cached_equals_recomputed(encoder: str, arm: str) -> None:
    check_generation(*made(encoder, arm))


@every_pair
def test_a_memory_serves_many_prompts(encoder: str, arm: str) -> None:
    check_memory(*made(encoder, arm))


@every_pair
def test_saved_and_loaded_it_is_the_same(encoder: str, arm: str, tmp_path: Path) -> None:
    check_saved(*made(encoder, arm), tmp_path)


@every_pair
def test_new_clips_in_later_turns_equal_recomputation(encoder: str, arm: str) -> None:
    check_turns(*made(encoder, arm))


@every_pair
def test_sixteen_clips_in_a_message_equal_the_reference(encoder: str, arm: str) -> None:
    check_sixteen_clips(*made(encoder, arm))
