"""Timing on machines that are noisy: take turns, and report medians and quartiles.

Functions that are compared run in turns, one round after another, so that whatever disturbs the
machine disturbs all of them. Ratios are taken within a round, and their quartiles are shown.
"""

import time
from collections.abc import Callable
from statistics import median, quantiles

LEAST_ROUNDS, MOST_ROUNDS = 9, 30
SHORT = 0.05
"""Seconds. What is shorter runs once untimed before it is timed, after another's turn."""


def stopwatch(function: Callable) -> float:
    """Return the seconds that a call of `function` takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def rest(longest: float = 0.5, look: float = 0.005) -> None:
    """Sleep until no thread of this process is busy.

    A library's idle threads go on spinning for a while (those of OpenBLAS for 0.1 s, in which a JAX
    step of 36 ms took 66) and would slow down the next library.
    """
    until = time.perf_counter() + longest
    while time.perf_counter() < until:
        before = time.process_time()
        time.sleep(look)
        if time.process_time() - before < look / 5:
            return


def quartiles(values) -> dict[str, float]:
    """Return median, lower and upper quartile, and how many values there were.

    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    {'low': 2.0, 'median': 3.0, 'high': 4.0, 'rounds': 5}
    """
    values = list(values)
    low, high = (values * 2)[:2] if len(values) == 1 else quantiles(values, method="inclusive")[::2]
    return {"low": low, "median": median(values), "high": high, "rounds": len(values)}


class Measured:
    """The seconds of each function in each round.

    Attributes
    ----------
    seconds : dict of name to list of float
    first : dict of name to float
        What the very first call took beyond a usual one: compilation, for the most part.
    """

    def __init__(self, seconds: dict[str, list[float]], first: dict[str, float]):
        self.seconds = seconds
        self.first = {name: max(0.0, first[name] - median(values)) for name, values in seconds.items()}

    def time(self, name: str, divided_by: float = 1) -> dict[str, float]:
        """Return the quartiles of one function's time, for each of `divided_by` steps."""
        return quartiles(value / divided_by for value in self.seconds[name])

    def ratio(self, name: str, base: str) -> dict[str, float]:
        """Return the quartiles of a function's time over another's in the same round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return quartiles(value / other for value, other in pairs)

    def table(self, base: str, divided_by: float = 1) -> dict[str, dict]:
        """Return time, ratio to `base` and first call of all functions, to be stored."""
        return {
            name: {
                "time": self.time(name, divided_by),
                "ratio": self.ratio(name, base),
                "first": self.first[name],
            }
            for name in self.seconds
        }


def interleave(
    functions: dict[str, Callable],
    repeats: int | None = None,
    *,
    budget: float = 2.0,
    settle: bool = False,
    benchmark=None,
    clock: Callable[[Callable], float] = stopwatch,
) -> Measured:
    """Time functions in turns.

    Parameters
    ----------
    functions : dict of name to function without arguments
    repeats : int, optional
        Rounds; by default as many as fit into `budget` seconds, within limits.
    settle : bool
        Whether to `rest` before each turn: for functions of different libraries.
    benchmark : fixture of pytest-benchmark, optional
        It times the first function, so that this appears in its table.
    clock : function
        Returns the seconds of a call; by default by the wall clock.
    """
    first = {name: clock(function) for name, function in functions.items()}
    usual = {name: clock(function) for name, function in functions.items()}
    if repeats is None:
        repeats = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(budget / sum(usual.values()))))
    seconds: dict[str, list[float]] = {name: [] for name in functions}

    def prepare(name):
        if settle:
            rest()
            if usual[name] < SHORT:
                functions[name]()

    def take(name):
        seconds[name].append(clock(functions[name]))

    lead, *others = functions

    def round_of_others():
        for name in others:
            prepare(name)
            take(name)
        prepare(lead)

    if benchmark is None:
        for _ in range(repeats):
            round_of_others()
            take(lead)
    else:
        benchmark.pedantic(take, args=(lead,), setup=round_of_others, rounds=repeats)
    return Measured(seconds, first)
