"""Saving where the disk is full or loses bits: what was good before stays."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.training import checkpoint
from pal_audio.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint

ERRORS = {
    "of the system": OSError(errno.ENOSPC, "No space left on device"),
    # As safetensors 0.8.0 said it on a full tmpfs.
    "of safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


def full_from(monkeypatch: pytest.MonkeyPatch, error: Exception, number: int) -> None:
    """Let the disk be full at the second file of checkpoint `number`, which is then half written."""
    whole = checkpoint.save_file

    def save_file(tensors: Any, path: Path) -> None:
        if f"{number:08d}" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise error
        whole(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", save_file)


def damage(path: Path) -> None:
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    save_checkpoint(tmp_path, *parts(), {"step": 1})
    full_from(monkeypatch, ERRORS[kind], 2)
    with pytest.raises(PalError, match=r"the disk is full .*--resume") as caught:
        save_checkpoint(tmp_path, *parts(), {"step": 2})
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert newest_checkpoint(tmp_path) == tmp_path / "00000001"


def test_another_error_of_the_system_is_not_called_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full_from(monkeypatch, OSError(errno.EIO, "Input/output error"), 1)
    with pytest.raises(OSError, match="Input/output error"):
        save_checkpoint(tmp_path, *parts(), {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_pal_train_says_that_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["train", str(recipe), "--out", str(run)]
    with monkeypatch.context() as patch:
        full_from(patch, ERRORS["of safetensors"], 4)
        assert cli.main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"pal: error: {run / 'checkpoints-0'}: the disk is full")
    assert [path.name for path in (run / "checkpoints-0").iterdir()] == ["00000002"]
    assert cli.main([*command, "--resume"]) == 0


def test_a_full_disk_is_named_wherever_it_shows(monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise ERRORS["of the system"]

    monkeypatch.setattr("pal_audio.training.run._report", full)
    with pytest.raises(PalError, match=r"run: the disk is full"):
        train(recipe, tmp_path / "run")


def train(recipe: Path, out: Path) -> None:
    from pal_audio.training.run import train as run

    run(recipe, out=out)


def test_rotation_keeps_the_last_verified_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second is damaged on the disk, the third while it is written; the first must outlive both."""
    for step in (1, 2):
        save_checkpoint(tmp_path, *parts(), {"step": step})
    damage(tmp_path / "00000002")
    with monkeypatch.context() as patch:
        replace = checkpoint.os.replace

        def lossy(source: Path, target: Path) -> None:
            damage(source)
            replace(source, target)

        patch.setattr(checkpoint.os, "replace", lossy)
        save_checkpoint(tmp_path, *parts(), {"step": 3})
    assert newest_checkpoint(tmp_path) == tmp_path / "00000001"
    save_checkpoint(tmp_path, *parts(), {"step": 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000004"]
    assert newest_checkpoint(tmp_path) == tmp_path / "00000004"


def test_moments_of_a_convolution_come_back_in_its_strides(tmp_path: Path) -> None:
    """The fused step walks parameter and moments by address, so other strides would mix up a filter's entries."""
    results = []
    for resumed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for step in (1, 2):
            if resumed and step == 2:
                path = save_checkpoint(tmp_path, model, optimizer, {"step": 1})
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
                load_checkpoint(path, model, optimizer)
            model(torch.arange(4 * 25.0).sin().view(1, 4, 5, 5)).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.weight.detach())
    assert torch.equal(*results)


def test_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".00000003.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, *parts(), {"step": 4})
    assert [path.name for path in tmp_path.iterdir()] == ["00000004"]
