"""Files of arrays: safetensors, with a description as JSON in the metadata.

A file appears whole or not at all: it is written under a temporary name, flushed to the disk and
renamed. Nothing in it is ever executed.
"""

import contextlib
import json
import os
from pathlib import Path

import numpy as np

FORMAT = 1


def write(path, arrays: dict[str, np.ndarray], description: dict) -> None:
    """Write arrays and description to `path`: the whole new file appears, or the old one stays."""
    from safetensors.numpy import save

    metadata = {"nnx": json.dumps({"format": FORMAT, **description})}
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_whole(path, save(contiguous, metadata=metadata))


def write_whole(path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place."""
    import tempfile

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {path.parent}")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(path) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays and the description of a file, or raise a ValueError that says what is wrong."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if "nnx" not in metadata:
        raise ValueError(f"{path} holds tensors, but was not saved by nnx: it has no description of a model")
    try:
        description = json.loads(metadata["nnx"])
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise ValueError(f"{path} is damaged: its description cannot be read")
    if description["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {description['format']}, this nnx reads up to {FORMAT}: install a newer nnx-engine"
        )
    return arrays, description
