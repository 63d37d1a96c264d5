"""Colours and axes of all pictures."""

import numpy as np

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B6B6B"
CLASS_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#333333")
CLASS_MARKERS = "os^Dv<>P"
MOST_LABELS = 25
"""The most rows or columns with a label each and text in each cell; larger pictures do not grow further."""
MOST_POINTS = 20_000
"""The most samples that are drawn."""


def new_axes(size=(6.0, 4.0), rows=1, columns=1, squeeze=True):
    """Return the axes of a new figure of this size, in inches."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        message = f"nnx.plot needs matplotlib ({error}). Install it with: pip install 'nnx-engine[plot]'"
        raise ImportError(message) from error
    return pyplot.subplots(rows, columns, figsize=size, squeeze=squeeze, layout="constrained", dpi=120)[1]


def tidy(ax):
    """Return the axes with a light grid, and without the top and right edges of the frame."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def label(axis, names, places=None, most: int = MOST_LABELS) -> None:
    """Label rows or columns at 0, 1, ... or at `places`: all, or every second, fifth, ... of many."""
    step = next(n for n in _steps() if len(names) <= n * most)
    places = range(len(names)) if places is None else places
    axis.set_ticks(places[::step], [_shortened(str(name)) for name in names[::step]])
    axis.set_tick_params(length=0)


def _shortened(text: str, longest: int = 40) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _steps():
    """Yield 1, 2, 5, 10, 20, 50, ..."""
    size = 1
    while True:
        yield from (size, 2 * size, 5 * size)
        size *= 10


def write_cells(ax, picture, values, text) -> None:
    """Write `text(value)` into each cell of a picture; one with many rows or columns gets a colour bar instead."""
    if max(values.shape) > MOST_LABELS:
        ax.figure.colorbar(picture, cax=ax.inset_axes((1.02, 0, 0.03, 1)))
        return
    for (row, column), value in np.ndenumerate(values):
        *rgb, _ = picture.cmap(picture.norm(value))
        dark = np.dot(rgb, (0.299, 0.587, 0.114)) < 0.55
        colour = "white" if dark else GREY if value == 0 else "black"
        ax.text(column, row, text(value), ha="center", va="center", color=colour)


def some_of(count: int) -> tuple[np.ndarray | slice, str]:
    """Return the indices of the samples to draw, all or a random subset of MOST_POINTS, and their label."""
    if count <= MOST_POINTS:
        return slice(None), "sample"
    index = np.random.default_rng(0).choice(count, MOST_POINTS, replace=False)
    return np.sort(index), f"{MOST_POINTS:,} of {count:,} samples"
