"""A comparison of backends as text, 80 columns wide."""

import math
import textwrap
from typing import TYPE_CHECKING

from nnx.compare.differences import Difference, Pair

if TYPE_CHECKING:
    from nnx.compare import Comparison

WIDTH = 80
COLUMNS = ("output", "dL/dinput", "dL/dweights")


def as_text(comparison: "Comparison") -> str:
    """Return the settings, and for each pair of backends two tables and a sentence."""
    parts = [comparison.settings]
    for pair in comparison.pairs:
        parts += [_layer_table(pair), *([_step_table(pair)] if pair.losses else [])]
    parts += [_wrapped(sentence(pair)) for pair in comparison.pairs]
    if comparison.dtype == "float32" and any(isinstance(pair.first, Difference) for pair in comparison.pairs):
        parts.append(_wrapped(
            "A fault or rounding? A ReLU's input may round to either side of 0. In float64 (--dtype float64) rounding "
            "is far smaller: what is left there is a fault."
        ))  # fmt: skip
    if comparison.not_finite is not None:
        reference = comparison.pairs[0].names[0]
        parts.append(_wrapped(
            f"{reference}, the reference, has a value that is not finite: {comparison.not_finite}. From there on, "
            f"agreeing means little."
        ))  # fmt: skip
    return "\n\n".join(parts)


def sentence(pair: Pair) -> str:
    """Return a sentence: whether two backends agree, and if not, the first difference."""
    names, steps = " and ".join(pair.names), len(pair.losses)
    if pair.first is None:
        return f"{names} agree within {pair.tolerance:g} over {steps} step{'s' * (steps != 1)}."
    return f"{names} first part at {pair.first.describe(pair.names)}."


def _layer_table(pair: Pair) -> str:
    cells: dict[str, dict[str, float]] = {}
    for difference in pair.differences:
        place = difference.place
        if place.stage not in ("forward", "backward"):
            continue
        row, column = cells.setdefault(place.layer, {}), _column(difference)
        row[column] = max(row.get(column, 0.0), difference.relative)
    rows = [
        [name, *(_number(row.get(column), pair.tolerance) for column in COLUMNS)]
        for name, row in cells.items()
    ]
    title = f"{' and '.join(pair.names)}, layer by layer: largest relative differences"
    return "\n".join([title, *_aligned([["layer", *(c + "  " for c in COLUMNS)], *rows])])


def _column(difference: Difference) -> str:
    place = difference.place
    if place.stage == "forward":
        return "output"
    return "dL/dinput" if place.what.startswith("dL/dinput") else "dL/dweights"


STAGES = {
    "difference": ("fit",),
    "gradients": ("compiled forward", "compiled backward"),
    "update": ("update",),
}
"""The stages of a step in each column of the second table."""


def _step_table(pair: Pair) -> str:
    rows = []
    for step, (losses, weights) in enumerate(zip(pair.losses, pair.weights, strict=True), 1):
        differences = [d for d in pair.differences if d.place.step == step]
        largest = [
            max((d.relative for d in differences if d.place.stage in stages), default=None)
            for stages in STAGES.values()
        ]
        cells = [_number(value, pair.tolerance) for value in largest]
        rows.append([str(step), *(f"{loss:#.7g}" for loss in losses), *cells, _number(weights, math.inf)])
    columns = [f"{column}  " for column in (*STAGES, "weights")]
    header = ["step", *(f"loss {name}"[:16] for name in pair.names), *columns]
    title = f"{' and '.join(pair.names)}, training steps as fit runs them"
    return "\n".join([title, *_aligned([header, *rows])])


def _number(value: float | None, tolerance: float) -> str:
    """Return a difference as text, marked with ! if it is beyond tolerance."""
    if value is None:
        return "-  "
    return f"{value:.1e}" + (" !" if value > tolerance else "  ") if value else "0  "


def _aligned(rows) -> list[str]:
    """Return aligned lines: the first column to the left, shortened if needed, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = min(widths[0], WIDTH - sum(width + 2 for width in widths[1:]))
    lines = []
    for name, *numbers in rows:
        cells = [_shortened(name, first).ljust(first)]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _shortened(name: str, width: int) -> str:
    """Return the end of a path that is too long, which names the layer."""
    return name if len(name) <= width else "..." + name[len(name) - width + 3 :]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
