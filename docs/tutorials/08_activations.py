"""Activation functions: without one between them, two layers would be no more than one.

A picture of each with its derivative, which is what backpropagation multiplies by. Where it is near 0,
as in the flat ends of sigmoid and tanh, little of the gradient gets through; relu lets all through
where its input is positive and nothing elsewhere.
"""

import argparse
from pathlib import Path

import nnx
from nnx import plot

OUT = "runs/tutorials/08_activations.png"


def main(out=OUT):
    axes = plot.activation_gallery()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    axes.flat[0].figure.savefig(out)

    values = {name: nnx.activations.get(name)([-1.0, 0.0, 1.0]) for name in nnx.activations.names()}
    values = {name: nnx.get_backend().to_numpy(y).tolist() for name, y in values.items()}
    print("                  x = -1       0       1")
    for name, numbers in values.items():
        print(f"{name:14}  " + "".join(f"{number:8.3f}" for number in numbers))
    print(f"picture: {out}")
    return values


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=OUT, help="where the picture goes")
    main(parser.parse_args().out)
