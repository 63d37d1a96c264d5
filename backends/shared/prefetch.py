"""Prefetching: work on the next items begins while one is used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable

BATCHES_AHEAD = 2


def prefetch(items: Iterable, begin: Callable, ahead: int = BATCHES_AHEAD) -> Generator:
    """Yield `begin(item)` for each item, after `begin` was called for `ahead` further items.

    An exception of the iterable is raised after the items before it were yielded.

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
