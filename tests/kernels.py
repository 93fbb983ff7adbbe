"""Triton kernels in tests: on a GPU, or without one in Triton's interpreter, which is chosen when triton is imported."""

import importlib
import os
from typing import Any

import pytest
import torch


def kernel_module(name: str) -> Any:
    """A module of `pal_audio.integration` that needs Triton; the test is skipped where there is none."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernel needs a GPU, or triton and TRITON_INTERPRET=1")
    return importlib.import_module(f"pal_audio.integration.{name}")
