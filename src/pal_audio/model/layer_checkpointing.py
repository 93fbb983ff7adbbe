"""Checkpointing of an LLM's layers, under either of the names that transformers 5 has for it."""

from typing import Any


def enable(llm: Any, **options: Any) -> None:
    """Non-reentrant checkpointing of the layers.

    Args:
        llm: a transformers model.
        **options: further ones of torch's `checkpoint`.
    """
    options = {"use_reentrant": False, **options}
    if hasattr(llm, "activation_checkpointing_enable"):  # its name in later releases
        llm.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def disable(llm: Any) -> None:
    """Undo `enable`."""
    if hasattr(llm, "activation_checkpointing_disable"):
        llm.activation_checkpointing_disable()
    else:
        llm.gradient_checkpointing_disable()
