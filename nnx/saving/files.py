"""Files of arrays: safetensors, with a description as JSON in the metadata.

A file appears whole or not at all: it is written under a temporary name, flushed to the disk and
renamed. A checksum tells a damaged one. Nothing in it is ever executed.
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
"""What is written. Files of format 1, which had no checksum, are read too."""

LARGEST_HEADER = 100_000_000
"""Bytes of names, shapes and description: as much as every reader of safetensors takes."""

MOST_NESTED = 4000
"""Brackets inside each other in a description: there are up to three for a layer in a layer."""

PARTIAL = ".nnx-partial"
"""How the names of temporary files end. One stays behind where a process was killed while it wrote."""

_NAME_OF_PARTIAL = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(PARTIAL)}", re.DOTALL)

CAN_RENAME_OPEN = os.name != "nt"
"""Whether the system renames a file that is open."""

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8"}

# What JSON and an array raise on something that is not what it should be.
UNFIT = (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, OverflowError)


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
    """Return a checksum of a description and of names, shapes, types and bytes of all arrays."""
    import hashlib  # here, as json: with OpenSSL, as long as a tenth of `import nnx`

    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@undivided
def write_whole(path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place.

    A file that is there keeps its permissions and, as far as the system lets this process, its owner; the target of
    a symbolic link is written. A new file gets the permissions that the umask leaves.

    Raises
    ------
    OSError
        If there is no such folder, or something else than a file that may be written is in the place.
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
    """Return the file that `path` leads to and what the system says of it, or None if it is not there yet.

    Raises an OSError unless it can be written as a file.
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
    """Return handle and path of a new file beside `target`, locked for as long as it is open."""
    import secrets  # here, for the time of `import nnx`

    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}{PARTIAL}")
        handle = os.open(path, flags, mode)
        try:
            with contextlib.suppress(OSError):  # where nothing can be locked nothing is removed either
                locks.try_lock(handle)
            if locks.is_at(handle, path):  # else one who tidied up has taken it for abandoned
                return handle, path
        except BaseException:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        os.close(handle)


def _keep_permissions(handle: int, old: os.stat_result) -> None:
    """Give an open file the permissions and, if it may be, the owner of another."""
    if not hasattr(os, "fchown"):  # on Windows
        return
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, stat.S_IMODE(old.st_mode) & 0o777)


def remove_abandoned(folder) -> None:
    """Remove what killed processes left of files that they were writing, and nothing that is being written."""
    for path in Path(folder).glob(f".*{PARTIAL}"):
        if not _NAME_OF_PARTIAL.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # another process's, or there is no way to lock it: it stays
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if locks.try_lock(handle) and locks.is_at(handle, path):
                    path.unlink()
            finally:
                os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Flush the new name of a file to the disk, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays and the description of a file.

    Takes time and memory in proportion to the size of the file, whatever the file says.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of a newer format, or not one of nnx.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            metadata, arrays = _read(file, path.stat().st_size)
    except UNFIT as error:
        raise ValueError(f"{path} is not a whole safetensors file: {one_line(error)}") from None
    if "nnx" not in metadata:
        raise ValueError(f"{path} holds tensors, but was not saved by nnx: it has no description of a model")
    try:
        text = metadata["nnx"]
        description = _nested(text)
        version = description["format"]
        if type(version) is not int or version < 1:
            raise ValueError(f"there is no format {version!r}")
        whole = version == 1 or version > FORMAT or metadata.get("checksum") == checksum(text, arrays)
    except UNFIT as error:
        raise ValueError(f"{path} is damaged: its description cannot be read ({one_line(error)})") from None
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {one_line(version)}, this nnx reads up to {FORMAT}: install a newer nnx-engine"
        )
    if not whole:
        raise ValueError(f"{path} is damaged: its content is not what its checksum says. Use another copy")
    return arrays, description


def _nested(text: str) -> Any:
    """Return what JSON says; layers may lie deeper in each other than Python's recursion limit lets it read."""
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
    """Return metadata and arrays of an open file of `size` bytes, or raise one of UNFIT."""
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
        dtype, shape, (start, stop) = _dtype(name, entry["dtype"]), entry["shape"], entry["data_offsets"]
        if (
            any(type(n) is not int or not 0 <= n < 2**63 for n in (*shape[:65], start, stop))
            or len(shape) > 64
        ):
            raise ValueError(f"{name!r} has no possible shape or place")
        if start != end or stop - start != math.prod(shape) * dtype.itemsize or stop > size - 8 - length:
            raise ValueError(f"{name!r} of shape {shape} is not at bytes {start} to {stop}")
        arrays[name] = np.frombuffer(bytearray(file.read(stop - start)), dtype).reshape(shape)
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"{size - 8 - length - end} bytes are left over")
    return metadata, arrays


def _dtype(name: str, code) -> np.dtype:
    if code not in DTYPES:
        raise ValueError(f"{name!r} has dtype {code!r}, not one of {', '.join(DTYPES)}")
    return np.dtype(DTYPES[code])


def one_line(what) -> str:
    """Return the text of an error as one line of bearable length.

    >>> one_line(ValueError("first\\nsecond"))
    'first second'
    """
    text = f"{what} is missing" if isinstance(what, KeyError) else str(what)
    text = " ".join(text[:3000].split()) or type(what).__name__
    return text if len(text) <= 2000 else f"{text[:1997]}..."
