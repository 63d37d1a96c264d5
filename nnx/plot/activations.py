"""Activation functions and their derivatives."""

import math

import numpy as np

from nnx import activations
from nnx.plot.axes import BLUE, GREY, ORANGE, new_axes, tidy


def activation_gallery(names=None, axes=None):
    """Draw activation functions and their derivatives, one panel each.

    Parameters
    ----------
    names : list of str or Activation, optional
        By default all elementwise activations.
    axes : array of matplotlib Axes, optional
        At least one for each name.

    Returns
    -------
    array of matplotlib Axes, as given; by default (rows, columns), with the legend in the first free one

    Examples
    --------
    >>> import nnx
    >>> axes = nnx.plot.activation_gallery(["relu", "tanh", "gelu"])
    >>> axes.shape, axes[0, 1].get_title()
    ((1, 3), 'tanh')
    """
    if names is None:
        names = [name for name in activations.names() if activations.get(name).elementwise]
    chosen = [activations.get(name) for name in names]
    if not chosen:
        raise ValueError(
            "names is empty: name at least one activation, such as 'relu', or leave names out for all"
        )
    for activation in chosen:
        if not activation.elementwise:
            raise ValueError(f"{activation!r} works along an axis: it has no curve of one number to draw")
    if axes is None:
        columns = min(5, len(chosen))
        rows = math.ceil(len(chosen) / columns)
        axes = new_axes((2.1 * columns, 1.8 * rows), rows, columns, squeeze=False)
        for ax in axes[:, 1:].flat:
            ax.tick_params(labelleft=False)
        for ax in axes[-1]:
            ax.set_xlabel("x")
    panels = np.ravel(axes)
    if len(panels) < len(chosen):
        raise ValueError(f"{len(chosen)} activations need as many axes, got {len(panels)}")
    x = np.linspace(-4, 4, 400)
    for name, activation, ax in zip(names, chosen, panels, strict=False):
        y = activation.forward(np, x)
        slope = activation.gradient(np, np.ones_like(x), x if activation.needs_input else y)
        tidy(ax)
        for axis_line in (ax.axhline, ax.axvline):
            axis_line(0, color=GREY, linewidth=0.6)
        ax.plot(x, y, color=BLUE, label="function")
        ax.plot(x, slope, color=ORANGE, linestyle="--", label="derivative")
        ax.set(title=name if isinstance(name, str) else repr(name), xlim=(-4, 4), ylim=(-2, 3))
    spare = panels[len(chosen) :]
    for ax in spare:
        ax.set_axis_off()
    curves = panels[0].get_lines()[-2:]
    if len(spare):
        spare[0].legend(handles=curves, frameon=False, loc="center left")
    else:
        panels[0].legend(handles=curves, frameon=False, loc="upper left", fontsize="small", borderpad=0.1)
    return axes
