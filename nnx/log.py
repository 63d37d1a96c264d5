"""Messages of nnx: to Python's `logging` under the name `nnx`, and warnings at the line of the user's program.

    logging.basicConfig(level="INFO")

`logging` is not imported: where no other module has done so, nobody listens.
"""

import functools
import sys
import warnings


def info(message: str, *arguments) -> None:
    """Log what happens once in a training, or less often, such as where its data lies."""
    _log("INFO", message, arguments)


def debug(message: str, *arguments) -> None:
    """Log what helps to find a fault, such as each step that is compiled."""
    _log("DEBUG", message, arguments)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside of nnx that called it, however deep inside nnx this is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "nnx":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _log(level: str, message: str, arguments) -> None:
    logging = sys.modules.get("logging")
    # Its last name is there: no other thread is still importing it.
    if logging is not None and hasattr(logging, "captureWarnings"):
        _logger(logging).log(getattr(logging, level), message, *arguments, stacklevel=3)


@functools.cache
def _logger(logging):
    logger = logging.getLogger("nnx")
    logger.addHandler(logging.NullHandler())
    return logger
