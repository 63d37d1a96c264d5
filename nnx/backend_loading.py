"""Backends found by their entry points, and made once in a process."""

import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnx.registry import suggest

GROUP = "nnx.backends"


class BackendError(RuntimeError):
    """A backend does not exist or cannot run here; the message says what to do about it."""

    __module__ = "nnx.backend"


@dataclass(frozen=True)
class BackendInfo:
    """The description of one backend that `nnx.available_backends()` returns."""

    __module__ = "nnx.backend"
    name: str
    usable: bool
    version: str = ""
    device: str = ""
    memory: str = ""
    reason: str = ""
    """Why it cannot run, and the remedy; empty when it can."""


def cpu_info(name: str, version: str) -> BackendInfo:
    """Return the description of a backend that computes on the CPU."""
    memory = ""
    if hasattr(os, "sysconf"):
        memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return BackendInfo(name, True, version, f"cpu ({os.cpu_count()} cores)", memory)


@functools.cache
def entry_points() -> Mapping[str, Any]:
    """Return the entry point of each installed backend, by name."""
    import importlib.metadata  # a third of the time of `import nnx`, and not always needed

    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if "numpy" in points:
        return points
    return {**_entry_points_of_clone(), **points}


def _entry_points_of_clone() -> dict[str, Any]:
    """Return the entry points of a clone of nnx that was never installed."""
    import importlib.metadata
    import tomllib

    try:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return {}
    points = tomllib.loads(text).get("project", {}).get("entry-points", {}).get(GROUP, {})
    return {name: importlib.metadata.EntryPoint(name, value, GROUP) for name, value in points.items()}


_lock = threading.RLock()


def load(name: str) -> Any:
    """Return the backend of this name; the first call makes it.

    Raises
    ------
    BackendError
        If there is no such backend, or it cannot run here.
    """
    with _lock:
        return _make(name)


@functools.cache
def _make(name: str) -> Any:
    points = entry_points()
    if not points:
        raise BackendError(
            "no backend is installed, not even NumPy's: nnx is imported from a folder that was never "
            "installed and has no pyproject.toml beside it. Run: pip install -e ."
        )
    if name not in points:
        raise BackendError(suggest("backend", name, [*points, "auto"]))
    return points[name].load()()


def available_backends() -> dict[str, BackendInfo]:
    """Return the description of each installed backend, by name: whether it can run here, and if not, why."""
    infos = {}
    for name in sorted(entry_points()):
        try:
            infos[name] = load(name).describe()
        except BackendError as error:
            infos[name] = BackendInfo(name, usable=False, reason=str(error))
        except Exception as error:  # a broken plug-in must not hide the others
            infos[name] = BackendInfo(name, usable=False, reason=f"cannot be loaded: {error!r}")
    return infos
