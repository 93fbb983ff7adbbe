"""SIGINT and SIGTERM while a run trains: the first asks it to stop after the step at hand, the second ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which signal has asked for the end, if one has."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def made(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of dying by it.

    With that first signal the handlers from before are back, so a second one does what it always did. A signal that was
    ignored stays ignored, and outside the main thread, where Python allows no handlers, nothing is installed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number in _SIGNALS if before[number] not in (None, signal.SIG_IGN)]

    def restore() -> None:
        for number in ours:
            signal.signal(number, before[number])

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        request.signal = signal.Signals(number)

    for number in ours:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
