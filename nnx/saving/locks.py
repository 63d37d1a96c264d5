"""Locks on files, which the operating system releases when the process that holds them ends, however it ends.

They are those of `flock`: of Linux, macOS and the BSDs, and of most of their file systems. On others nothing is
locked, and `run_folder` says so.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from nnx import log

NAME = "state.nnx.lock"
"""The file in a run folder that is locked while a training writes its state there."""


class FolderInUseError(RuntimeError):
    """Another training is at work in a folder."""


_changes = threading.Lock()
_held: dict[Path, tuple[int, int]] = {}
"""The run folders that this process trains in: the thread, and the handle of the locked file."""


def try_lock(handle: int) -> bool:
    """Lock an open file, and return whether nobody else holds it.

    Raises
    ------
    OSError
        Where files cannot be locked.
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
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def run_folder(folder) -> Iterator[None]:
    """Keep all other trainings out of a folder inside a `with` block, those of this process included.

    The same thread may enter it again.

    Raises
    ------
    FolderInUseError
        If another training is at work there.
    """
    folder = Path(folder).resolve()
    with _changes:
        thread, _ = _held.get(folder, (None, None))
        is_outer = thread != threading.get_ident()
        if thread is not None and is_outer:
            raise _in_use(folder, "another thread of this process")
        if is_outer:
            _held[folder] = threading.get_ident(), _locked(folder)
    try:
        yield
    finally:
        if is_outer:
            with _changes:
                _release(folder)


def _locked(folder: Path) -> int:
    """Return the handle of the locked file in a folder, or -1 where nothing can be locked."""
    path = folder / NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not try_lock(handle):
                raise _in_use(folder, os.read(handle, 200).decode(errors="replace") or "another process")
            if is_at(handle, path):  # the one who held it takes the file away
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
    _, handle = _held.pop(folder, (0, -1))  # gone in a forked process
    if handle >= 0:
        (folder / NAME).unlink(missing_ok=True)
        os.close(handle)


def _in_use(folder: Path, who: str) -> FolderInUseError:
    return FolderInUseError(
        f"{folder} is the folder of a training that is under way in {who}: wait for its end, stop it, or give this "
        f"one another folder"
    )


def _forget_after_fork() -> None:
    """Let go of what the parent holds: else it would stay locked for as long as the child lives."""
    global _changes
    _changes = threading.Lock()
    for _, handle in _held.values():
        if handle >= 0:
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
