"""Errors that the command line turns into an exit status of their own; all else about input is a `ValueError`."""


class HubUnavailableError(ConnectionError):
    """The Hub or the network does not answer, or does not know the name (exit status 69)."""


class NotAllowedError(PermissionError):
    """The Hub answers, but this user may not do that (exit status 77)."""


class NonFiniteLossError(ArithmeticError):
    """The loss is NaN or infinite (exit status 70). Nothing is saved after it."""


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged or of another run (exit status 2)."""


class SaveError(OSError):
    """A checkpoint could not be written, or there is no room for it (exit status 74)."""


class TrainingMemoryError(RuntimeError):
    """A training step does not fit into memory (exit status 1); the message names the settings that would."""


class TrainingInterruptedError(KeyboardInterrupt):
    """A signal stopped training after a checkpoint was saved (exit status 128 + `signum`)."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class OutputDirectoryError(OSError):
    """The output directory is refused: it holds something else, or another run (exit status 73)."""
