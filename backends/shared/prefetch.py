"""Work begun some items ahead of the one that is being used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable

BATCHES_AHEAD = 2


def prefetch(items: Iterable, begin: Callable, ahead: int = BATCHES_AHEAD) -> Generator:
    """Yield `begin(item)` of each item, having begun this many further ones.

    An exception of the iterable comes in its turn, after the items before it.

    >>> list(prefetch("abc", lambda item: (print("begin", item), item)[1], ahead=1))
    begin a
    begin b
    begin c
    ['a', 'b', 'c']
    """
    begun = deque()
    try:
        for item in items:
            begun.append(begin(item))
            if len(begun) > ahead:
                yield begun.popleft()
    except Exception:
        while begun:
            yield begun.popleft()
        raise
    while begun:
        yield begun.popleft()
