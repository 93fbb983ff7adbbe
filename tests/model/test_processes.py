"""Invariant 10 on two processes: one rank's batch has audio, the other's has none, in any order; nothing hangs."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests.tiny import batch, message, noise, tiny_model


def work(rank: int, port: int, arm: str, checkpointing: bool, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, processor = tiny_model("llama", arm)
    model.language_model.requires_grad_(False)  # stage 1: a rank without audio has nothing else to train
    if checkpointing:
        model.gradient_checkpointing_enable()
    wrapped = DistributedDataParallel(model.train())
    with_audio, without = [message(noise(0.5, rank)), message()], [message(), message(question="a bell")]
    # Mixed in every order: (audio, text), (text, audio), (text, text), (audio, audio).
    for conversations in ([with_audio, without, without, with_audio], [without, with_audio, without, with_audio])[rank]:
        inputs = batch(processor, conversations, padding_side="right")
        wrapped(**inputs, use_cache=False).logits.float().pow(2).mean().backward()
    torch.save({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("arm", "checkpointing"), [("plits", False), ("lal", True), ("pal", False)])
def test_ranks_with_and_without_audio_train_together(arm: str, checkpointing: bool, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, arm, checkpointing, str(tmp_path)), nprocs=2, join=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    assert {name.split(".")[0] for name in first} == {"encoders", "streams", "marker"}
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name])
    assert any(gradient.abs().sum() > 0 for gradient in first.values())
