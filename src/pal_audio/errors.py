"""The one exception type for mistakes in what the user gave."""


class PalError(ValueError):
    """The user's input is wrong. The message is one line: what is wrong, where, and what to do."""
