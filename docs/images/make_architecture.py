"""Draw docs/images/architecture.png: the folders of nnx, and what imports what.

python docs/images/make_architecture.py
"""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

matplotlib.use("Agg")

ROWS = [
    [("estimators", "scikit-learn"), ("compare", "backend against backend"), ("plot", "pictures")],
    [("models", "Model, Sequential: hold weights, answer questions")],
    [("training", "Trainer, StepRunner, Steps, nonfinite guard"), ("export", "ONNX, NumPy")],
    [
        ("callbacks", "Keras's hooks"),
        ("saving", "model files, resume"),
        ("inspect", "layer by layer"),
        ("graph", "traced code"),
    ],
    [
        ("losses", "value, gradient"),
        ("metrics", "sums, result"),
        ("layers", "forward, pullback"),
        ("data", "what fit takes"),
        ("distributed", "shards"),
    ],
    [("core", "backend, context, kernels, random, registry, tree, shapes, errors, optimizers, ...")],
    [
        ("backends/numpy", "cache-sized blocks"),
        ("backends/cupy", "CUDA launches"),
        ("backends/jax", "XLA"),
        ("backends/shared", "compiled eager steps"),
    ],
]
COLOURS = ["#CCEBFF", "#BFE3D0", "#FFE8B3", "#F7D9EA", "#F7D9EA", "#E6E6E6", "#FFD9C2"]


def main(folder: Path = Path(__file__).parent) -> None:
    """Draw the picture into a folder."""
    figure, axes = plt.subplots(figsize=(10, 5.6))
    for level, (row, colour) in enumerate(zip(ROWS, COLOURS, strict=True)):
        width = 10 / len(row)
        for column, (name, text) in enumerate(row):
            left, bottom = column * width + 0.08, len(ROWS) - level - 1 + 0.1
            axes.add_patch(FancyBboxPatch(
                (left, bottom), width - 0.16, 0.8, boxstyle="round,pad=0,rounding_size=0.08", facecolor=colour,
                edgecolor="#555555",
            ))  # fmt: skip
            middle = left + (width - 0.16) / 2
            axes.text(
                middle,
                bottom + (0.52 if text else 0.4),
                name,
                ha="center",
                va="center",
                weight="bold",
                size=11,
            )
            axes.text(middle, bottom + 0.22, text, ha="center", va="center", size=9)
    axes.set(xlim=(0, 10), ylim=(0, len(ROWS)))
    axes.axis("off")
    figure.savefig(folder / "architecture.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
