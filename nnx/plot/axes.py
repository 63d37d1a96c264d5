"""What all pictures share: colours, and axes without what is no data."""

import numpy as np

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B6B6B"
CLASS_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#333333")
CLASS_MARKERS = "os^Dv<>P"


def new_axes(size=(6.0, 4.0), rows=1, columns=1, squeeze=True):
    """Return the axes of a new figure of this size, in inches."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        message = f"nnx.plot needs matplotlib ({error}). Install it with: pip install 'nnx-engine[plot]'"
        raise ImportError(message) from error
    return pyplot.subplots(rows, columns, figsize=size, squeeze=squeeze, layout="constrained", dpi=120)[1]


def tidy(ax):
    """Take away what is no data: the frame above and to the right, and a heavy grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def write_cells(ax, picture, values, text) -> None:
    """Write `text(value)` into each cell of a picture of values, dark on light or light on dark."""
    for (row, column), value in np.ndenumerate(values):
        *rgb, _ = picture.cmap(picture.norm(value))
        dark = np.dot(rgb, (0.299, 0.587, 0.114)) < 0.55
        colour = "white" if dark else GREY if value == 0 else "black"
        ax.text(column, row, text(value), ha="center", va="center", color=colour)
