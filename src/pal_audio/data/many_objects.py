"""Very many objects that all stay, which Python's search for unreachable ones would walk again and again."""

import gc
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
