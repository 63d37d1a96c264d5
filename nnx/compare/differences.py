"""Differences between two backends: where, and how large."""

from dataclasses import dataclass, field

from nnx.compare.trace import Place


@dataclass(frozen=True)
class Difference:
    """The largest difference between two backends at one place."""

    place: Place
    relative: float
    """Relative to the largest value: infinite if only one value is finite, or the shapes differ."""
    name: str = ""
    """The name of the array, if there are several at the place."""
    index: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)

    def describe(self, names: tuple[str, str]) -> str:
        """Return place, difference and both values, after the names of the backends."""
        where = f"{self.name and f' in {self.name}'}{f' at index {self.index}' if self.index else ''}"
        shown = ", ".join(f"{name} {text}" for name, text in zip(names, _digits(*self.values), strict=True))
        return f"{self.place}: largest difference {self.relative:.1e}{where}: {shown}"


@dataclass(frozen=True)
class Failure:
    """An error that one backend raised and the reference did not."""

    place: Place
    error: str

    def describe(self, names: tuple[str, str]) -> str:
        """Return place and error, under the name of the backend."""
        return f"{self.place}: {names[1]} raises {self.error}"


@dataclass
class Pair:
    """The comparison of the reference with another backend."""

    names: tuple[str, str]
    tolerance: float
    differences: list[Difference] = field(default_factory=list)
    """In the order of computation."""
    losses: list[tuple[float, float]] = field(default_factory=list)
    """Of each step of `fit`."""
    weights: list[float] = field(default_factory=list)
    """The largest difference of weights after each step of `fit`: only for information."""
    failure: Failure | None = None

    @property
    def first(self) -> Difference | Failure | None:
        """The first difference beyond tolerance, or the failure; None if they agree."""
        return next((d for d in self.differences if d.relative > self.tolerance), self.failure)

    @property
    def agree(self) -> bool:
        """Whether no difference is beyond tolerance."""
        return self.first is None


def _digits(a: float, b: float) -> tuple[str, str]:
    """Return two numbers with enough digits to show their difference, at least four."""
    texts = [(f"{a:.{digits}g}", f"{b:.{digits}g}") for digits in range(4, 18)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])
