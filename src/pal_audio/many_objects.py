"""Very many objects that all stay, which Python's search for unreachable ones would walk again and again."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def many_objects() -> Iterator[None]:
    """Make them without the search: while they become more, it would look at all of them each time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def left_alone() -> Iterator[None]:
    """Keep what there is out of the search until the end; what is made from now on is searched as ever."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def importing() -> Iterator[None]:
    """Import modules without the search, and keep all that is there by then out of it, until a `left_alone` ends.

    Our choice: torch and transformers make so many objects that looking through them took 13% of a cold `pal ask` (dev/LOG.md).
    """
    known = len(sys.modules)
    with many_objects():
        yield
        if len(sys.modules) > known:  # else what is garbage by now would stay
            gc.freeze()
