"""Things made ahead in a thread of their own, while those before them are being used.

Reading a batch, and waiting for a disk, then costs no time of a step. The thread ends with the loop that
takes the things, in whatever way that ends; what it raises comes in its turn, after the things before it.
"""

import contextvars
import threading
from collections.abc import Generator, Iterable

import numpy as np

from nnx import tree
from nnx.data.samples import check_count

NAME = "nnx-ahead"


def ahead(items: Iterable, count: int = 1) -> Generator:
    """Yield from `items`, of which a thread makes up to `count` beyond the one in use.

    Closing the generator, or an exception where it is used, ends the thread once the thing that it is
    making is made.

    >>> list(ahead("abc"))
    ['a', 'b', 'c']
    """
    import queue  # here, as all that few need: `import nnx` is to be short

    room, made, closed = threading.Semaphore(count), queue.SimpleQueue(), threading.Event()

    def make():
        iterator, error = items, None
        try:
            iterator = iter(items)
            while room.acquire() and not closed.is_set():
                made.put((next(iterator),))  # no name for it here: it would be kept until the next
        except StopIteration:
            pass
        except BaseException as raised:  # whatever it is, it belongs to whoever waits
            error = raised
        try:
            if iterator is not items:  # made here, so ended here
                getattr(iterator, "close", lambda: None)()
        except BaseException as raised:
            error = error or raised
        made.put(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(make,), name=NAME, daemon=True)
    try:
        thread.start()
        while isinstance(found := made.get(), tuple):
            room.release()
            yield found[0]
        if found is not None:
            raise found
    finally:
        found = None
        closed.set()
        room.release()
        if thread is not threading.current_thread():  # collected as garbage by the thread itself
            thread.join()


class Prefetch:
    """An iterable of batches, made ahead in a background thread while the model trains.

    Give it to `fit` in place of the iterable where reading or making a batch takes long and leaves the
    processor to others: files, networks, image decoders. Each pass over it starts a thread, which ends
    with the pass.

    Parameters
    ----------
    batches : iterable
        Is advanced in the thread, never by two at a time. Its arrays are copied, so it may reuse them.
    ahead : int
        How many batches are made beyond the one in use. When training stops early these are lost.

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
