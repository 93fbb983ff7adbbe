"""SIGINT and SIGTERM while a run trains: the first asks it to stop after the step at hand, the second ends it at once."""

import os
import signal
import threading
import time
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
def stop_request(patience_s: float = 0.0) -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of dying by it.

    Args:
        patience_s: signals that follow the first this soon count as the same one: a launcher passes on what the system may
            have sent to all processes already.

    With that first signal (or when patience has ended) the handlers from before are back, so a second one does what it
    always did. A signal that was ignored stays ignored, and outside the main thread, where Python allows no handlers, nothing
    is installed.
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

    first_s: float | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        if first_s is None:  # `request.signal` may be set already, by what another process was sent
            request.signal, first_s = signal.Signals(number), time.monotonic()
            if not patience_s:
                restore()
        elif time.monotonic() - first_s > patience_s:
            restore()
            os.kill(os.getpid(), number)

    for number in ours:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
