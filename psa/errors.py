"""What can go wrong by a user's doing; the command line prints each as one line and exits 2."""


class PsaError(Exception):
    """Something a user did or supplied; the message is one line: the thing, what was expected, what came."""


class DataError(PsaError):
    """A path, file or array of the user's that cannot be read as data."""


class ConfigError(PsaError):
    """A setting that does not exist or has a value outside its support."""


class RunError(PsaError):
    """A run directory that is missing, incomplete or of another kind."""


class Stopped(Exception):
    """A user's Ctrl-C; the message says how to go on. No KeyboardInterrupt, whose message typer would swallow."""


class TrainingFailed(Exception):
    """Training stopped by itself (a loss that is not finite); the command line prints it and exits 1."""
