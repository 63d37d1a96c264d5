"""What is made once and used again, by models in any thread."""

import threading

_changes = threading.Lock()


def remember(made: dict, key, value, most: int) -> None:
    """Keep a value under a key, and no more than `most` in all: what came first is forgotten.

    >>> made = {1: "one", 2: "two"}
    >>> remember(made, 3, "three", most=2)
    >>> made
    {2: 'two', 3: 'three'}
    """
    with _changes:  # another thread may forget the same
        made[key] = value
        while len(made) > most:
            del made[next(iter(made))]
