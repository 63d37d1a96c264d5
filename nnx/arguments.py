"""Checks of arguments: the range of a number, and what a function takes."""

import inspect


def expect_range(owner, *, at_least=None, above=None, at_most=None, below=None, **values) -> None:
    """Raise a ValueError that names the argument, unless each of `values` lies in the range; None is left out.

    >>> from nnx.layers import Dropout
    >>> expect_range(Dropout(0.5), at_least=0, below=1, rate=2.0)
    Traceback (most recent call last):
    ...
    ValueError: Dropout: rate must be at least 0 and below 1, got 2.0
    """
    for name, value in values.items():
        if value is None or (
            value == value  # not nan
            and (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
        ):
            continue
        limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
        expected = " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
        raise ValueError(f"{type(owner).__name__}: {name} must be {expected or 'a number'}, got {value!r}")


def takes_namespace(function, given=()) -> bool:
    """Whether a function must be called as `function(xp, x)`: it needs two arguments beside those given by name.

    >>> takes_namespace(lambda xp, x: xp.exp(x)), takes_namespace(lambda x, base=2: base**x)
    (True, False)
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C have no signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty and p.name not in given for p in parameters) == 2
