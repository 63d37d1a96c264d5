"""Files of arrays: safetensors, with a description as JSON in the metadata.

A file appears whole or not at all: it is written under a temporary name, flushed to the disk and
renamed. A checksum detects damage. Reading a file executes nothing in it.
"""

import contextlib
import itertools
import math
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnx import log
from nnx.interrupt import undivided
from nnx.saving import locks

FORMAT = 2
"""The format that is written. Files of format 1, which had no checksum, can be read too."""

LARGEST_HEADER = 100_000_000
"""The most bytes of names, shapes and description: what every reader of safetensors accepts."""

MOST_NESTED = 4000
"""The deepest nesting of brackets in a description; each nested layer takes up to three."""

PARTIAL = ".nnx-partial"
"""The suffix of temporary files. A process that is killed while it writes leaves one behind."""

_PARTIAL_NAME = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(PARTIAL)}", re.DOTALL)

CAN_RENAME_OPEN = os.name != "nt"
"""Whether the system can rename an open file."""

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8"}

MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, OverflowError)
"""Errors that malformed content raises while it is parsed."""


def write(path, arrays: dict[str, np.ndarray], description: dict) -> None:
    """Write arrays and description to `path`: the whole new file appears, or the old one stays."""
    import json

    from safetensors.numpy import save

    text = json.dumps({"format": FORMAT, **description})
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = save(contiguous, metadata={"nnx": text, "checksum": checksum(text, contiguous)})
    if (header := int.from_bytes(content[:8], "little")) > LARGEST_HEADER:
        raise ValueError(
            f"cannot save to {path}: names, shapes and settings take {header:,} bytes, and {LARGEST_HEADER:,} can "
            f"be read again. Set large constants by set_weights, not as settings of layers"
        )
    write_whole(path, content)


def checksum(text: str, arrays: dict[str, np.ndarray]) -> str:
    """Return a checksum of a description and of names, shapes, dtypes and bytes of all arrays."""
    import hashlib  # imported here, like json: with OpenSSL it takes a tenth of `import nnx`

    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@undivided
def write_whole(path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place.

    An existing file keeps its permissions and, where the system allows it, its owner. If `path` is a symbolic
    link, its target is replaced. The umask sets the permissions of a new file.

    Raises
    ------
    OSError
        If the folder does not exist, or `path` is not a writable file.
    """
    target, old = expect_file(path)
    handle, temporary = _make_partial(target, 0o666 if old is None else 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if old is not None:
                _keep_permissions(handle, old)
            file.flush()
            os.fsync(handle)
            if CAN_RENAME_OPEN:  # closing it ends the lock
                temporary.replace(target)
        if not CAN_RENAME_OPEN:
            temporary.replace(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)
    log.info("wrote %s, %.2f MiB", path, len(content) / 2**20)


def expect_file(path) -> tuple[Path, os.stat_result | None]:
    """Return the file that `path` points to and its `stat`, None for a new file.

    Raises an OSError unless a file can be written there.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {target.parent}")
    try:
        old = target.stat()
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(f"cannot save to {path}: it is a folder. Give the name of a file in it")
    if not stat.S_ISREG(old.st_mode):
        raise OSError(
            f"cannot save to {path}: it is a device, pipe or socket, not a file. Give the name of a file"
        )
    if not os.access(target, os.W_OK):
        raise PermissionError(f"cannot save to {path}: the file is there, and this process may not write it")
    return target, old


def _make_partial(target: Path, mode: int) -> tuple[int, Path]:
    """Return handle and path of a new file beside `target`, locked while it is open."""
    import secrets  # here, to keep `import nnx` fast

    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}{PARTIAL}")
        handle = os.open(path, flags, mode)
        try:
            with contextlib.suppress(OSError):  # `remove_abandoned` removes nothing where locks fail
                locks.try_lock(handle)
            if locks.is_at(handle, path):  # else another process has just removed it as abandoned
                return handle, path
        except BaseException:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        os.close(handle)


def _keep_permissions(handle: int, old: os.stat_result) -> None:
    """Give an open file the permissions and, where allowed, the owner in `old`."""
    if not hasattr(os, "fchown"):  # on Windows
        return
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, stat.S_IMODE(old.st_mode) & 0o777)


def remove_abandoned(folder) -> None:
    """Remove the temporary files of killed processes, but none that is being written."""
    for path in Path(folder).glob(f".*{PARTIAL}"):
        if not _PARTIAL_NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # it belongs to another user, or cannot be locked: keep it
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if locks.try_lock(handle) and locks.is_at(handle, path):
                    path.unlink()
            finally:
                os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Flush the new name of a file to the disk, on systems that can flush a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays and the description of a file.

    Time and memory are proportional to the size of the file, whatever its content.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of a newer format, or not written by nnx.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            metadata, arrays = _read(file, path.stat().st_size)
    except MALFORMED as error:
        raise ValueError(f"{path} is not a whole safetensors file: {one_line(error)}") from None
    if "nnx" not in metadata:
        raise ValueError(f"{path} holds tensors, but was not saved by nnx: it has no description of a model")
    try:
        text = metadata["nnx"]
        description = _parse_nested(text)
        version = description["format"]
        if type(version) is not int or version < 1:
            raise ValueError(f"there is no format {version!r}")
        whole = version == 1 or version > FORMAT or metadata.get("checksum") == checksum(text, arrays)
    except MALFORMED as error:
        raise ValueError(f"{path} is damaged: its description cannot be read ({one_line(error)})") from None
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {one_line(version)}, this nnx reads up to {FORMAT}: install a newer nnx-engine"
        )
    if not whole:
        raise ValueError(f"{path} is damaged: its content is not what its checksum says. Use another copy")
    return arrays, description


def _parse_nested(text: str) -> Any:
    """Return the value of JSON text, which may be nested more deeply than Python's recursion limit allows."""
    import json

    try:
        return json.loads(text)
    except RecursionError:
        brackets = re.sub(r'"(?:[^"\\]|\\.)*"|[^][{}]', "", text)
        if max(itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets)) > MOST_NESTED:
            raise
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + MOST_NESTED))
    return json.loads(text)


def _read(file, size: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Return metadata and arrays of an open file of `size` bytes, or raise one of MALFORMED."""
    import json

    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
        raise ValueError(f"its header of {length} bytes does not fit into the {size} bytes of the file")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text")
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name!r} has dtype {entry['dtype']!r}, not one of {', '.join(DTYPES)}")
        dtype, shape, (start, stop) = np.dtype(DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        integers = all(type(n) is int and 0 <= n < 2**63 for n in (*shape[:65], start, stop))
        if not integers or len(shape) > 64:
            raise ValueError(f"{name!r} has no possible shape or place")
        if start != end or stop - start != math.prod(shape) * dtype.itemsize or stop > size - 8 - length:
            raise ValueError(f"{name!r} of shape {shape} is not at bytes {start} to {stop}")
        arrays[name] = np.frombuffer(bytearray(file.read(stop - start)), dtype).reshape(shape)
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"{size - 8 - length - end} bytes are left over")
    return metadata, arrays


def one_line(error) -> str:
    """Return the text of an error as one line of at most 2000 characters.

    >>> one_line(ValueError("first\\nsecond"))
    'first second'
    """
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    text = " ".join(text[:3000].split()) or type(error).__name__
    return text if len(text) <= 2000 else f"{text[:1997]}..."
