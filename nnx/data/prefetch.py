"""Prefetching: a background thread makes the next items while the current one is used.

Reading batches, and waiting for a disk, then takes no time of a step. The thread ends with the loop that
uses the items, however that ends; an error in the thread is raised in order, after the items before it.
"""

import contextvars
import threading
from collections.abc import Generator, Iterable

import numpy as np

from nnx import tree
from nnx.data.samples import check_count

NAME = "nnx-ahead"


def ahead(items: Iterable, count: int = 1) -> Generator:
    """Yield from `items`, while a thread makes up to `count` more.

    If the generator is closed, or its user raises, the thread ends after its current item.

    >>> list(ahead("abc"))
    ['a', 'b', 'c']
    """
    import queue  # here, to keep `import nnx` fast

    room, made, closed = threading.Semaphore(count), queue.SimpleQueue(), threading.Event()

    def make():
        iterator, error = items, None
        try:
            iterator = iter(items)
            while room.acquire() and not closed.is_set():
                made.put((next(iterator),))  # a variable would keep the item until the next one
        except StopIteration:
            pass
        except BaseException as raised:  # raised again where the items are used
            error = raised
        try:
            if iterator is not items:  # it was made here
                getattr(iterator, "close", lambda: None)()
        except BaseException as raised:
            error = error or raised
        made.put(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(make,), name=NAME, daemon=True)
    try:
        thread.start()
        while isinstance(result := made.get(), tuple):
            room.release()
            yield result[0]
        if result is not None:
            raise result
    finally:
        result = None
        closed.set()
        room.release()
        if thread is not threading.current_thread():  # garbage collection may run this in the thread itself
            thread.join()


class Prefetch:
    """An iterable of batches that a background thread makes while the model trains.

    Give it to `fit` in place of the iterable if a batch takes long to make without using Python: from
    files, networks, image decoders. Each pass over it starts a thread, which ends with the pass.

    Parameters
    ----------
    batches : iterable
        Only one thread at a time advances it. Its arrays are copied, so it may reuse them.
    ahead : int
        Number of batches to make in advance. They are lost if training stops early.

    Examples
    --------
    >>> batches = [([[0.0], [1.0]], [0, 1]), ([[2.0], [3.0]], [1, 0])]
    >>> len(list(Prefetch(batches)))
    2
    """

    def __init__(self, batches: Iterable, ahead: int = 2):
        if not isinstance(batches, Iterable):
            raise TypeError(f"batches must be an iterable of (x, y), got {batches!r}")
        self.batches, self.ahead = batches, check_count("ahead", ahead)

    def __iter__(self):
        return ahead(map(_copied, self.batches), self.ahead)


def _copied(item):
    """Return a batch with copies of its arrays."""
    return tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, item)
