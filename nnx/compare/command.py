"""Compare backends: run the same training steps on each, and find the first difference.

Each layer's output and gradients are compared with those of the first backend,
the reference; then gradients and optimizer compiled, and the losses of fit.
Train on the GPU, and debug on NumPy:

    python -m nnx compare                          a network with every layer
    python -m nnx compare net.nnx                  a saved model
    python -m nnx compare net.py:build             the model that a function returns
    python -m nnx compare train.py -- --lr 0.1     the first fit of a script

A script runs unchanged, with the arguments after --, until it first calls fit:
the model and the first batches of that fit are compared, and the script ends
there. Otherwise the data is random, to fit the model's input and its loss.

Exit code: 0 if all agree, 1 if they differ, 2 if there is nothing to compare.
"""

import sys

import nnx
from nnx.backend import Backend
from nnx.cli import Parser, number
from nnx.compare import TOLERANCES, CompareError, compare
from nnx.compare.script import SourceError, load_source
from nnx.models.model import DTYPES


def add_options(parser: Parser) -> None:
    """Give the subcommand its arguments."""
    count, amount = number(int, 1), number(float, 0)
    default = ", ".join(f"{value:g} in {name}" for name, value in TOLERANCES.items())
    add = parser.add_argument
    # fmt: off
    add("model", metavar="MODEL", nargs="?",
        help="saved model, file.py:function or script.py (default: a built-in network)")
    add("--backends", metavar="NAMES", default="numpy,jax,cupy", help="separated by commas; the first is the reference")
    add("--steps", metavar="N", type=count, default=3, help="training steps")
    add("--batch-size", metavar="N", type=count, help="samples a step (default: 32, or those of the script)")
    add("--seed", metavar="N", type=number(int, 0), default=0, help="of drawn data, and of models that have none")
    add("--tolerance", metavar="D", type=amount,
        help=f"largest difference that counts as rounding, relative to the largest value (default: {default})")
    add("--dtype", choices=DTYPES, help="compute in this (default: as the model does)")
    # fmt: on


def run(args, parser: Parser, arguments) -> int:
    """Compare, print, and return the exit code; `arguments` are those of the script."""
    try:
        backends = usable_backends(args.backends.split(","))
        nnx.utils.set_random_seed(args.seed)
        model, batches = load_source(args.model, arguments, args.steps, args.batch_size, args.seed)
        result = compare(
            model, backends, batches, steps=args.steps, batch_size=args.batch_size or 32, seed=args.seed,
            tolerance=args.tolerance, dtype=args.dtype,
        )  # fmt: skip
    except (SourceError, CompareError, nnx.BackendError, nnx.NotReadyError, TypeError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "python -m nnx compare: interrupted\n")
    print(result)
    return 0 if result.agree else 1


def usable_backends(names) -> list[Backend]:
    """Return the backends that can run here, and print a line about each that cannot.

    Raises
    ------
    BackendError
        If fewer than two can run, or a name is unknown.
    """
    backends, infos = [], None
    for name in dict.fromkeys(name.strip() for name in names):
        try:
            backends.append(nnx.as_backend(name))
        except Exception as error:  # a broken plug-in is as unusable as a missing one
            infos = infos or nnx.available_backends()
            if name not in infos:
                raise
            reason = " ".join((infos[name].reason or str(error)).split())
            print(f"{name} cannot run here: {reason}", file=sys.stderr)
    if len(backends) < 2:
        shown = backends[0].name if backends else "none"
        raise nnx.BackendError(
            f"two backends that can run here are needed, got {shown}: see python -m nnx info"
        )
    return backends
