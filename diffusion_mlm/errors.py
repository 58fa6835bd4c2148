"""Errors that the command line turns into an exit status of their own; all else about input is a `ValueError`."""


class HubUnavailableError(ConnectionError):
    """The Hub or the network does not answer, or does not know the name (exit status 69)."""


class NotAllowedError(PermissionError):
    """The Hub answers, but this user may not do that (exit status 77)."""


class NonFiniteLossError(ArithmeticError):
    """The loss is NaN or infinite (exit status 70). Nothing is saved after it."""


class OutputDirectoryError(OSError):
    """The output directory is refused: it holds something else, or another run (exit status 73)."""
