"""A cache with a bound that follows its use: what was used last stays, and more of it where that pays."""

import threading
from collections.abc import Callable
from typing import Any


class Recent:
    """The values used last, each under its key.

    It holds `few` values. A key that was dropped and is asked for again makes room for one more, up to `most`:
    ever new keys never hold more than `few` values, and a loop over the same keys soon holds all of them.

    Parameters
    ----------
    few, most : int
        The bounds on the number of values, at first and in the end; by default they are equal.
    drop : function, optional
        It is given each value that is dropped.

    Examples
    --------
    >>> squares = Recent(few=2, most=8)
    >>> [squares.get(n, lambda n=n: n * n) for n in (1, 2, 3)]
    [1, 4, 9]
    >>> squares.values
    {2: 4, 3: 9}
    >>> squares.get(1, lambda: 1)  # dropped too early, as it turns out
    1
    >>> squares.values
    {2: 4, 3: 9, 1: 1}
    """

    def __init__(self, few: int, most: int | None = None, drop: Callable = lambda value: None):
        self.room, self.most, self.drop = few, few if most is None else most, drop
        self.values: dict[Any, Any] = {}
        """Least recently used first."""
        self.dropped: dict[Any, None] = {}
        """The last keys whose values were dropped."""
        self._changes = threading.RLock()  # making a value may ask for another

    def get(self, key, make: Callable[[], Any]) -> Any:
        """Return the value of a key, made by `make()` if there is none."""
        with self._changes:
            value = self.values.pop(key, None)
            if value is None:
                if key in self.dropped:
                    del self.dropped[key]
                    self.room = min(self.room + 1, self.most)
                value = make()
            self.values[key] = value
            while len(self.values) > self.room:
                oldest = next(iter(self.values))
                self.drop(self.values.pop(oldest))
                self.dropped[oldest] = None
            while len(self.dropped) > self.most:
                del self.dropped[next(iter(self.dropped))]
        return value

    def clear(self) -> None:
        """Drop all values."""
        with self._changes:
            while self.values:
                self.drop(self.values.popitem()[1])
