"""Train a network on a data set, test it, and keep everything about it in a folder.

    python train.py                              handwritten digits, on NumPy
    NNX_BACKEND=jax python train.py              the same, compiled by XLA
    python train.py --data houses.csv --target price
    python train.py --data-dir mnist --hidden 512 256
    python -m nnx launch --gpus 2 train.py       on two GPUs
    python train.py --resume runs/digits-...     go on where that run was killed

Ctrl-C ends the training early: what was learnt is tested and saved, and the exit code is 130.
"""

import contextlib
import importlib.util
import json
import os
import platform
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np

import nnx
from nnx import cli, datasets, layers, metrics
from nnx.models.model import DTYPES
from nnx.saving import files, locks, resume

RESULTS = (
    "config.json", "history.csv", "model.nnx", resume.STATE, "metrics.json", "weights.safetensors",
    "learning_curves.png", "confusion_matrix.png", "predicted_against_true.png",
)  # fmt: skip
"""What this script writes into the folder of a run."""


def main(argv=None) -> int:
    """Run with these arguments; return the exit code."""
    with contextlib.ExitStack() as stack:
        return run(argv, stack)


def run(argv, stack: contextlib.ExitStack) -> int:
    """Do what `main` does; other runs are kept out of the folder until `stack` is closed."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.resume:
            parser.set_defaults(**read_options(args.resume))
            args = parser.parse_args(argv)
        backend = nnx.as_backend(args.backend)
        data, parts = read_data(args)
        model = build_model(args, data, backend)
        is_first = nnx.distributed.rank() == 0  # of several processes, one writes and prints
        folder = make_folder(args, data, parts, backend, stack) if is_first else Path(os.devnull)
    except (
        ValueError,
        OSError,
        ImportError,
        locks.FolderInUseError,
        nnx.BackendError,
        nnx.distributed.DistributedError,
    ) as error:
        parser.error(str(error))
    if is_first:
        print_header(args, data, parts, model)

    try:
        outcome = fit(args, model, parts, folder)
    except ValueError as error:
        if args.resume is None:
            raise
        parser.error(str(error))
    if not is_first:
        return 0
    X_test, y_test = parts.test
    outputs = model.predict(X_test)
    if not np.isfinite(outputs).all():
        parser.error("training diverged: the outputs are no longer finite. Try a smaller --lr")
    if data.task == "classification":
        report = metrics.classification_metrics(y_test, outputs)
    else:
        y_test, outputs = parts.target.undo(y_test), parts.target.undo(outputs[:, 0])
        report = metrics.regression_metrics(y_test, outputs)

    model.save(folder / "model.nnx")
    model.save_weights(folder / "weights.safetensors")
    write_json(folder / "metrics.json", {"test": report, **outcome})
    draw(folder, model.history, data, report, y_test, outputs)
    print_report(report, data, len(y_test))
    written = sorted(name for name in RESULTS if (folder / name).exists())
    print(f"\nresults   {folder}{os.sep}: {', '.join(written)}")
    return 130 if outcome["interrupted"] else 0


def read_data(args) -> tuple[datasets.Dataset, datasets.Split]:
    """Return the data set, and its standardised train, validation and test parts."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("test metrics need scikit-learn: pip install scikit-learn")
    if args.data_dir is None:
        data = datasets.load(args.data, args.target, args.task)
        return data, datasets.split(data, args.seed)
    if args.target or args.task:
        raise ValueError("--target and --task are for CSV files, not for --data-dir")
    data, test = datasets.load_mnist(args.data_dir)
    return data, datasets.split(data, args.seed, test=test)


def build_model(args, data: datasets.Dataset, backend) -> nnx.Sequential:
    """Return the compiled network: hidden layers, then what the task asks for."""
    classes = len(data.class_names)
    if data.task == "regression":
        outputs, activation, loss, metric = 1, "linear", "mean_squared_error", "mae"
    elif classes == 2:
        outputs, activation, loss, metric = 1, "sigmoid", "binary_crossentropy", "accuracy"
    else:
        outputs, activation, loss, metric = classes, "softmax", "sparse_categorical_crossentropy", "accuracy"

    model = nnx.Sequential(
        [layers.Input(data.X.shape[1:])], seed=args.seed, dtype=args.dtype, backend=backend
    )
    penalty = nnx.regularizers.L2(args.l2) if args.l2 else None
    for units in args.hidden:
        model.add(layers.Dense(units, args.activation, kernel_regularizer=penalty))
        if args.batch_norm:
            model.add(layers.BatchNormalization())
        if args.dropout:
            model.add(layers.Dropout(args.dropout))
    model.add(layers.Dense(outputs, activation, kernel_regularizer=penalty))

    optimizer = type(nnx.optimizers.get(args.optimizer))(learning_rate=args.lr)
    model.compile(optimizer=optimizer, loss=loss, metrics=[metric])
    return model


def read_options(folder) -> dict:
    """Return the options of the run in a folder that is to go on; NNX_BACKEND may choose another backend."""
    path = Path(folder) / "config.json"
    options = options_in(path)
    if options is None:
        raise ValueError(f"cannot go on: {path} does not hold the options of a run")
    own = {
        "out": str(folder),
        **({"backend": os.environ["NNX_BACKEND"]} if os.environ.get("NNX_BACKEND") else {}),
    }
    return {**options, **own, "resume": None}


def options_in(path: Path) -> dict | None:
    """Return the options that a run has written to its config.json, or None if it is no such file."""
    try:
        options = json.loads(path.read_text())["options"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return options if isinstance(options, dict) else None


def clear(folder: Path) -> None:
    """Remove what an earlier run has written to its folder, and nothing else.

    Raises
    ------
    ValueError
        If files of these names are there, but no run of this script has written them.
    """
    found = [name for name in RESULTS if os.path.lexists(folder / name)]
    if found and options_in(folder / "config.json") is None:
        raise ValueError(
            f"{folder} has {', '.join(found)}, which no run of train.py has left there: give "
            f"another folder as --out, or move them"
        )
    for name in reversed(found):  # config.json, which tells that the others are a run's, last
        (folder / name).unlink()


def make_folder(args, data, parts, backend, stack) -> Path:
    """Make the folder for the results, with all in it that is needed to repeat the run."""
    folder = Path(args.out or f"runs/{data.name}-{datetime.now():%Y-%m-%d-%H%M%S}")
    config = {
        "options": vars(args),
        "seed": args.seed,
        "backend": vars(backend.describe()),
        "versions": {"python": platform.python_version(), "nnx": nnx.__version__, "numpy": np.__version__},
        "data": {"name": data.name, "features": data.feature_names, "classes": data.class_names},
        # The network saw (X - mean) / scale and, for a regression, learnt (y - mean) / scale.
        "standardised": {"features": vars(parts.features), "target": vars(parts.target)},
    }
    try:
        folder.mkdir(parents=True, exist_ok=args.out is not None)
        stack.enter_context(locks.run_folder(folder))
        if not args.resume:
            clear(folder)
        write_json(folder / "config.json", config)
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror or error}): give another folder as --out"
        ) from None
    return folder


def fit(args, model, parts, folder) -> dict:
    """Train until done, stopped early, or interrupted; return how it went."""
    stopping = nnx.callbacks.EarlyStopping("val_loss", patience=args.patience, restore_best_weights=True)
    log = nnx.callbacks.CSVLogger(folder / "history.csv")
    saving = nnx.callbacks.ModelCheckpoint(folder / "model.nnx", save_best_only=True, save_state=True)
    start, interrupted = time.perf_counter(), False
    try:
        model.fit(
            *parts.train,
            epochs=args.epochs,
            batch_size=args.batch_size,
            validation_data=parts.validation,
            callbacks=[stopping, log, saving, nnx.callbacks.TerminateOnNaN()],
            verbose=1 if sys.stdout.isatty() else 2 if args.verbose else 0,
            resume=folder if args.resume else None,
        )
    except KeyboardInterrupt as interrupt:
        if interrupt.args:  # in the middle of a step: there is nothing to keep
            raise
        interrupted = True
        print("interrupted: what was learnt so far is kept")
    seconds, epochs = time.perf_counter() - start, len(model.history.epoch)
    best = stopping.best_epoch + 1 if epochs else None
    print(f"trained   {epochs} epochs in {seconds:.1f} s" + (f", the best was number {best}" if best else ""))
    return {"epochs": epochs, "best_epoch": best, "seconds": seconds, "interrupted": interrupted}


def print_header(args, data, parts, model):
    info = model.backend.describe()
    sizes = "-".join(str(n) for n in (*data.X.shape[1:], *args.hidden, *model.output_shape))
    train, validation, test = (len(y) for _, y in (parts.train, parts.validation, parts.test))
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    print(f"backend   {info.name} {info.version} on {', '.join(filter(None, (info.device, info.memory)))}")
    print(f"data      {data.name}: {data.task}, {data.X.shape[1]} features{classes}")
    print(f"samples   {train} to train on, {validation} to validate, {test} to test")
    print(f"network   {sizes}, {args.activation}, {model.count_params():,} parameters")


def print_report(report: dict, data, count: int):
    print(f"\ntest      {count} samples")
    for name, value in report.items():
        if name != "confusion_matrix":
            print(f"          {name:9} {value:10.4f}")
    if "confusion_matrix" in report and len(data.class_names) <= 20:
        names = [name[:12] for name in data.class_names]
        width = max(3, *map(len, names)) + 2
        print("\nconfusion matrix: a row for each true class, a column for each predicted one")
        print(" " * width + "".join(f"{name:>{width}}" for name in names))
        for name, row in zip(names, report["confusion_matrix"], strict=True):
            print(f"{name:>{width}}" + "".join(f"{number:>{width}}" for number in row))


def draw(folder, history, data, report, y_test, outputs):
    """Save pictures of the training, and of the predictions beside the truth."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        print(f"\nno plots: matplotlib cannot be imported ({error}): pip install matplotlib")
        return
    from nnx import plot

    if history.epoch:
        figure = Figure(figsize=(10, 4), layout="constrained")
        names = [name for name in history.history if not name.startswith("val_")]
        for name, ax in zip(names, figure.subplots(1, len(names)), strict=True):
            plot.learning_curves(history, metric=name, ax=ax)
        figure.savefig(folder / "learning_curves.png", dpi=120)

    figure = Figure(figsize=(6, 5), layout="constrained")
    ax = figure.add_subplot()
    if data.task == "classification":
        plot.confusion_matrix(report["confusion_matrix"], class_names=data.class_names, ax=ax)
        figure.savefig(folder / "confusion_matrix.png", dpi=120)
    else:
        plot.predicted_against_true(y_test, outputs, ax=ax)
        figure.savefig(folder / "predicted_against_true.png", dpi=120)


def write_json(path: Path, content: dict):
    text = json.dumps(content, indent=2, default=lambda array: np.asarray(array).tolist())
    files.write_whole(path, f"{text}\n".encode())


def make_parser() -> cli.Parser:
    """Return the options."""
    names = {kind: ", ".join(nnx.registry.REGISTRIES[kind].names()) for kind in ("activation", "optimizer")}
    count, amount = cli.number(int, 1), cli.number(float, 0)
    parser = cli.Parser("train.py", __doc__)
    add, source = parser.add_argument, parser.add_mutually_exclusive_group()
    # fmt: off
    add("--backend", metavar="NAME", default=os.environ.get("NNX_BACKEND") or "numpy",
        help="numpy, cupy, jax, auto or an installed plug-in; also taken from NNX_BACKEND")
    source.add_argument("--data", metavar="NAME|FILE.csv", default="digits",
                        help=f"{', '.join(datasets.NAMES)}, or a CSV file with a header line")
    source.add_argument("--data-dir", metavar="DIR", help="folder with the four MNIST files, gzipped or not")
    add("--target", metavar="COLUMN", help="column of the CSV file to predict (default: the last)")
    add("--task", choices=datasets.TASKS, help="of the CSV file (default: found from the target)")
    add("--hidden", metavar="UNITS", nargs="*", type=count, default=[256, 128], help="of each hidden layer")
    add("--activation", metavar="NAME", default="relu", help=f"of the hidden layers: {names['activation']}")
    add("--dropout", metavar="SHARE", type=amount, default=0.4, help="of units, after each hidden layer")
    add("--batch-norm", action="store_true", help="normalise each hidden layer over the batch")
    add("--optimizer", metavar="NAME", default="adam", help=names["optimizer"])
    add("--lr", metavar="RATE", type=amount, default=0.001, help="learning rate")
    add("--l2", metavar="FACTOR", type=amount, default=3e-4, help="penalty on the squared kernels")
    add("--epochs", metavar="N", type=count, default=100, help="passes over the data, at most")
    add("--batch-size", metavar="N", type=count, default=32, help="samples a step")
    add("--patience", metavar="N", type=count, default=30,
        help="epochs without a lower validation loss after which training stops; the best weights are kept")
    add("--seed", metavar="N", type=cli.number(int, 0), default=0, help="of split, weights, shuffles and masks")
    add("--dtype", choices=DTYPES, default="float32", help="of weights and computation")
    add("--out", metavar="DIR", help="folder for the results (default: runs/<data>-<date-time>); those of an earlier "
        "run in it are removed")
    add("--resume", metavar="DIR",
        help="go on with the run in this folder, with its options but for those given now")
    add("--verbose", action="store_true", help="print a line an epoch also when not on a terminal")
    # fmt: on
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as interrupt:
        print(": ".join(("train.py: interrupted", *interrupt.args)), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as in `python train.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
