"""The exception type for mistakes in what the user gave, and the one for a run that was asked to stop."""


class PalError(ValueError):
    """The user's input is wrong. The message is one line: what is wrong, where, and what to do."""


class Stopped(Exception):  # noqa: N818 - it is no error: everything was saved
    """A signal asked for the end, and what was done is saved. The message is one line that says how to go on.

    Args:
        message: the line.
        signal_number: of the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number
