"""`python -m nnx`: `info`, what nnx can run on here, and if not, why; `compare`, whether backends agree;
`launch`, a script on several GPUs."""

import os
import platform
import shutil
import sys
import textwrap

import numpy as np

import nnx
from nnx.cli import Parser


def main(argv=None) -> int:
    """Run a subcommand; return the exit code."""
    from nnx.compare import command
    from nnx.distributed import launch

    given = sys.argv[1:] if argv is None else list(argv)
    own = given[: given.index("--")] if "--" in given else given
    parser = Parser("python -m nnx", "A neural-network engine on NumPy, CuPy and JAX.")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    info = commands.add_parser("info", help="list the backends, and why one cannot run")
    info.set_defaults(run=lambda args: print_info())
    compare = commands.add_parser(
        "compare", help="tell whether backends agree, layer by layer", doc=command.__doc__
    )
    command.add_options(compare)
    compare.set_defaults(run=lambda args: command.run(args, compare, given[len(own) + 1 :]))
    launching = commands.add_parser("launch", help="train a script on several GPUs", doc=launch.__doc__)
    launch.add_options(launching)
    launching.set_defaults(run=lambda args: launch.run(args, launching, given[len(own) :]))
    args = parser.parse_args(own)
    if "run" not in args:
        parser.print_help()
        return 0
    return args.run(args)


def print_info() -> int:
    """Print versions, the backends, what keeps some from running, and the one that is chosen."""
    print(
        f"nnx {nnx.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, {sys.platform}\n"
    )
    backends = nnx.available_backends().values()
    header = ("backend", "usable", "version", "device", "memory")
    cells = [(b.name, "yes" if b.usable else "no", b.version, b.device, b.memory) for b in backends]
    rows = [header, *([cell or "-" for cell in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())

    columns = min(100, shutil.get_terminal_size().columns)
    for backend in backends:
        if not backend.usable:
            lines = textwrap.wrap(backend.reason, max(20, columns - 2), break_on_hyphens=False)
            print(f"\n{backend.name} cannot run here:", *lines, sep="\n  ")

    variable = os.environ.get("NNX_BACKEND")
    source = f"NNX_BACKEND={variable}" if variable else "NNX_BACKEND is not set"
    try:
        print(f"\nchosen: {nnx.get_backend().name} ({source})")
    except nnx.BackendError as error:
        print(f"\nchosen: none, {source} cannot be used", *textwrap.wrap(str(error), columns - 2), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
