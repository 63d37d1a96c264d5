"""Locks on files. The operating system releases them when the process that holds them ends.

They use `flock`, which Linux, macOS and the BSDs have on most file systems. Elsewhere nothing is locked, and
`run_folder` warns of it.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from nnx import log

NAME = "state.nnx.lock"
"""The file that is locked in a run folder while a training writes its state there."""


class FolderInUseError(RuntimeError):
    """Another training uses the folder."""


_changes = threading.Lock()
_held: dict[Path, tuple[int, int]] = {}
"""The thread, and the handle of the locked file, of each run folder in which this process trains."""


def try_lock(handle: int) -> bool:
    """Return whether an open file could be locked; False if another process holds its lock.

    Raises
    ------
    OSError
        If files cannot be locked here.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOSYS, "this system has no flock") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(handle: int, path) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def run_folder(folder) -> Iterator[None]:
    """Reserve a folder for one training inside a `with` block.

    The same thread may enter again; other threads and processes may not.

    Raises
    ------
    FolderInUseError
        If another training uses it.
    """
    folder = Path(folder).resolve()
    with _changes:
        thread, _ = _held.get(folder, (None, None))
        is_outer = thread != threading.get_ident()
        if thread is not None and is_outer:
            raise _in_use(folder, "another thread of this process")
        if is_outer:
            _held[folder] = threading.get_ident(), _lock(folder)
    try:
        yield
    finally:
        if is_outer:
            with _changes:
                _release(folder)


def _lock(folder: Path) -> int:
    """Return the handle of the locked file in a folder, or -1 if files cannot be locked here."""
    path = folder / NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not try_lock(handle):
                raise _in_use(folder, os.read(handle, 200).decode(errors="replace") or "another process")
            if is_at(handle, path):  # else the previous holder has just removed the file
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
                return handle
        except OSError as error:
            os.close(handle)
            log.warn(
                f"{folder} cannot be locked ({error.strerror}): see to it that no second training runs there"
            )
            return -1
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _release(folder: Path) -> None:
    _, handle = _held.pop(folder, (0, -1))  # a forked process holds nothing
    if handle >= 0:
        (folder / NAME).unlink(missing_ok=True)
        os.close(handle)


def _in_use(folder: Path, who: str) -> FolderInUseError:
    return FolderInUseError(
        f"{folder} is the folder of a training that is under way in {who}: wait for its end, stop it, or give this "
        f"one another folder"
    )


def _forget_after_fork() -> None:
    """Close the parent's handles: else its folders would stay locked while the child runs."""
    global _changes
    _changes = threading.Lock()
    for _, handle in _held.values():
        if handle >= 0:
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
