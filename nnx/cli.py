"""What command lines share: mistakes in one line, defaults in the help, numbers within limits."""

import argparse
import math


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and shows the default of each option that has one."""

    def _get_help_string(self, action):
        has_default = action.default is not None and action.default is not False
        return super()._get_help_string(action) if has_default else action.help


class Parser(argparse.ArgumentParser):
    """A parser that takes its description from a docstring and reports a mistake in one line."""

    def __init__(self, prog: str, doc: str | None = None, **settings):
        first, _, rest = (doc or "").partition("\n")
        super().__init__(prog, description=first, epilog=rest, formatter_class=Formatter, **settings)

    def error(self, message):
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def number(kind: type, least: float):
    """Return a function that reads a number, an `int` or `float`, not below `least`.

    >>> number(int, 1)("3")
    3
    """

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} not below {least}, got {text!r}")
        return value

    return read
