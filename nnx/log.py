"""What nnx tells Python's `logging`, under the name `nnx`: which way things went, and why.

    logging.basicConfig(level="INFO")

Nothing is told otherwise, and `logging` is not imported: where no other module has done so, nobody listens.
"""

import functools
import sys


def info(message: str, *arguments) -> None:
    """Tell what happens once in a training, or less often, such as where its data lies."""
    _tell("INFO", message, arguments)


def debug(message: str, *arguments) -> None:
    """Tell what is of use to find a fault, such as each step that is compiled."""
    _tell("DEBUG", message, arguments)


def _tell(level: str, message: str, arguments) -> None:
    logging = sys.modules.get("logging")
    # Its last name is there: no other thread is still importing it.
    if logging is not None and hasattr(logging, "captureWarnings"):
        _logger(logging).log(getattr(logging, level), message, *arguments, stacklevel=3)


@functools.cache
def _logger(logging):
    logger = logging.getLogger("nnx")
    logger.addHandler(logging.NullHandler())
    return logger
