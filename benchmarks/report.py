"""Turn a saved run into docs/benchmarks.md and its pictures: `python -m benchmarks.report [FILES]`.

Without files, the newest one that `make bench` saved under .benchmarks/ is taken.
"""

import argparse
import json
from pathlib import Path

from .pictures import estimators_picture, faster, of_kind, peers_picture, throughput_picture, unique

ROOT = Path(__file__).parents[1]
FOLDER_OF_IMAGES = "images"
THROUGHPUT, PEERS, ESTIMATOR = "bench_throughput.png", "bench_peers.png", "bench_estimators.png"


def newest_saved(folder: Path = ROOT / ".benchmarks") -> Path:
    """Return the newest run that was saved under `folder`."""
    files = sorted(folder.glob("**/*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise SystemExit(f"no saved run under {folder}: first run  make bench")
    return files[-1]


def load(paths) -> dict:
    """Return the runs of these files as one; the first one's machine is named."""
    runs = [json.loads(Path(path).read_text()) for path in paths]
    return {**runs[0], "benchmarks": [b for run in runs for b in run["benchmarks"]]}


# Numbers and tables


def duration(seconds: float) -> str:
    """Return a time with three digits and a unit.

    >>> duration(0.0123), duration(1.5), duration(4.2e-05)
    ('12.3 ms', '1.5 s', '42 µs')
    """
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1 or unit == "µs":
            return f"{number(seconds * factor)} {unit}"
    raise AssertionError


def number(value: float) -> str:
    """Return a number with three digits.

    >>> number(0.01234), number(12.34), number(123456.0)
    ('0.0123', '12.3', '123,456')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(quartiles: dict, show=number) -> str:
    """Return `median (lower quartile to upper quartile)`."""
    return f"{show(quartiles['median'])} ({show(quartiles['low'])} to {show(quartiles['high'])})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(run: dict) -> str:
    """Return a table of the machine and the libraries."""
    info = run["machine_info"]
    cpu = info.get("cpu", {})
    cores = info.get("usable_cores") or cpu.get("count", "?")
    libraries = ", ".join(f"{name} {version}" for name, version in info.get("libraries", {}).items())
    devices = "; ".join(f"{name}: {device}" for name, device in info.get("devices", {}).items())
    python = f"{info.get('python_implementation', 'Python')} {info.get('python_version', '')}"
    rows = [
        ["CPU", f"{cpu.get('brand_raw', info.get('processor', '?'))}, {cores} cores usable"],
        ["memory", info.get("memory", "?")],
        ["system", f"{info.get('system', '?')} {info.get('release', '')} {info.get('machine', '')}"],
        ["Python", python],
        ["libraries", libraries],
        ["backends", devices],
        ["date", run.get("datetime", "?")[:10]],
    ]
    return table(["what", "on this page"], rows)


def step_tables(run: dict) -> str:
    """Return one table for each network and kind of pass."""
    infos, parts = of_kind(run, "step"), []
    for network, what, dtype in unique((i["network"], i["what"], i["dtype"]) for i in infos):
        chosen = [i for i in infos if (i["network"], i["what"], i["dtype"]) == (network, what, dtype)]
        chosen.sort(key=lambda i: i["batch"])
        rows = [
            [
                str(info["batch"]),
                info["backend"],
                duration(info["seconds"]["median"]),
                number(info["samples_per_second"]),
                number(info["gflops"]),
                number(info["floor_gflops"]),
                spread(info["floor_ratio"], "{:.2f}".format),
                duration(info["compile_seconds"]) if info["compile_seconds"] > 0.05 else "none",
            ]
            for info in chosen
        ]
        header = ["batch", "backend", "time", "samples/s", "GFLOP/s", "floor GFLOP/s", "time over floor",
                  "compilation"]  # fmt: skip
        if what == "train step":
            header.append("over floor, gathering its batch")
            for row, info in zip(rows, chosen, strict=True):
                row.append(spread(info["gathering_ratio"], "{:.2f}".format))
        parts.append(f"### {what.capitalize()}, {network}, {dtype}\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def contest_table(info: dict, each: int = 1) -> str:
    """Return a table of who took how long, and what over the base."""
    rows = [
        [
            name,
            spread(scaled(found["time"], 1 / each), duration),
            spread(found["ratio"], "{:.2f}".format),
            duration(found["first"]),
        ]
        for name, found in info["times"].items()
    ]
    return table(["who", "time", f"over {info['base']}", "first call, beyond that"], rows)


def scaled(quartiles: dict, factor: float) -> dict:
    """Return quartiles multiplied by a number."""
    return {name: quartiles[name] * factor for name in ("low", "median", "high")}


def fit_tables(run: dict) -> str:
    parts = []
    for info in of_kind(run, "fit"):
        title = f"### Time per step inside `fit`: {info['task']}"
        said = f"{info['samples']:,} samples, {info['epochs']} epochs, {info['steps']:,} steps a fit."
        parts.append(f"{title}\n\n{said}\n\n{contest_table(info, info['steps'])}")
    return "\n\n".join(parts)


def architecture_tables(run: dict) -> str:
    parts = []
    for info in of_kind(run, "architecture"):
        title = f"### {info['what'].capitalize()}: {info['network']}, batch {info['batch']}"
        parts.append(f"{title}\n\n{contest_table(info)}")
    return "\n\n".join(parts)


def peer_step_table(run: dict) -> str:
    """Return the table of train steps over the floor, a row for each batch size."""
    infos = sorted(of_kind(run, "peer step"), key=lambda i: i["batch"])
    everybody = unique(n for i in infos for n in i["times"])
    floors = [n for n in everybody if n.startswith("floor")]
    names = [n for n in everybody if n not in floors]
    rows = [
        [str(i["batch"])]
        + [duration(i["times"][n]["time"]["median"]) if n in i["times"] else "" for n in floors]
        + [spread(i["times"][n]["ratio"], "{:.2f}".format) if n in i["times"] else "" for n in names]
        for i in infos
    ]
    return table(["batch", *floors, *names], rows)


def estimator_table(run: dict) -> str:
    """Return the table of the estimators over scikit-learn's, a row for each number of samples and width."""
    infos = of_kind(run, "estimator")
    names = unique(n for i in infos for n in i["times"] if n != "scikit-learn")
    rows = [
        [
            f"{i['samples']:,}",
            str(tuple(i["widths"])),
            duration(i["times"]["scikit-learn"]["time"]["median"] / i["epochs"]),
        ]
        + [spread(faster(i["times"][n]["ratio"]), "{:.2f}".format) if n in i["times"] else "" for n in names]
        + [duration(i["times"][n]["first"]) if n in i["times"] else "" for n in names]
        for i in infos
    ]
    firsts = [f"first fit beyond that, {name}" for name in names]
    return table(
        [
            "samples",
            "hidden layers",
            "scikit-learn, an epoch",
            *(f"{n}: times as fast" for n in names),
            *firsts,
        ],
        rows,
    )


def small_tables(run: dict) -> str:
    parts = [f"### {info['title']}\n\n{contest_table(info)}" for info in of_kind(run, "small")]
    rows = [
        [i["backend"], f"{i['peak'] / 2**20:.0f} MiB", f"{i['needed'] / 2**20:.0f} MiB", f"{i['ratio']:.2f}"]
        for i in of_kind(run, "memory")
    ]
    if rows:
        header = ["backend", "what a fit adds to the peak", "must hold", "ratio"]
        parts.append(f"### Memory of a fit\n\n{MEMORY}\n\n{table(header, rows)}")
    return "\n\n".join(parts)


ESTIMATORS = """`nnx.estimators.MLPClassifier` and scikit-learn's, with the same parameters, data (20 features, 3
classes, float32) and starting weights, batches of 200, for the same number of epochs. Their losses are checked to be
equal."""

MEMORY = """A process of its own fits 40,000 samples of 784 features (784-256-128-10, batch 512). It must hold data,
parameters and their gradients, the optimizer's slots, and the activations of a batch. Under JAX, XLA's compiler
and a copy of the data on the device come on top."""

PAGE = """# Benchmarks

How close a training step comes to the matrix products in it, and how long people wait with nnx and with what they
would use instead. The page and its pictures are made from a saved run by `make bench-report`.

{machine}

## Running it

    make bench                          # all backends that can run here; saves the run under .benchmarks/
    make bench-peers                    # once, for PyTorch, Keras and Optax (never needed for the rest)
    NNX_BACKEND=cupy make bench         # one backend
    make bench ARGS='-k "steps and wide" --dtype float64'
    make bench-report                   # this page, from the newest saved run; ARGS=FILE for another

Against an earlier run, for example before and after a change:

    make bench ARGS='--benchmark-save=before'
    make bench ARGS='--benchmark-compare=*_before'
    make bench ARGS='--benchmark-compare=*_before --benchmark-compare-fail=median:20%'

pytest-benchmark's table then has a row NOW and a row for the saved run in each group. Compare runs of one machine
only, and see below before believing a few percent.

## How to read it

- The **floor** is the matrix products of a step and nothing else, through the backend's own matmul (with `out=` on
  NumPy and CuPy; under JAX compiled, with results kept). It is measured in turns with the step. A ratio of 1.10
  means that all the rest (activations, loss, optimizer, Python) takes 10% of the products' time. A train step is
  given its batch; the last column is of one that gathers its batch from the data first, as each step of `fit` does.
  GFLOP/s count the products alone.
- Small batches are bound by memory and by calls, not by arithmetic: at batch 1 Adam moves more bytes than the
  products do, so ratios there are large for everybody.
- Times are medians, with lower and upper quartile in brackets. A ratio is taken within each round and then its
  quartiles. What is compared runs in turns in one process, with a rest between libraries so that the idle threads
  of one do not slow down the next.
- Machines are noisy, shared ones most of all. Where brackets overlap, there is no difference to speak of; ratios are
  steadier than times. Take a second run before you believe a surprise.
- Compilation is outside of all times and in a column of its own: what the first call took beyond a usual one, from
  which a process profits that compiled the same before.
- Peers have the same network, batch, loss, Adam, data and float32, and their loss is checked to fall. nnx runs with
  history, accuracy and a moving progress bar; Keras without its bar; scikit-learn without accuracy; PyTorch with
  one thread or all, whichever is faster in a short trial.
"""


def page(run: dict) -> str:
    """Return docs/benchmarks.md."""
    parts = [PAGE.format(machine=machine(run))]
    if of_kind(run, "step"):
        picture = f"![GFLOP/s against batch size, with the floor]({FOLDER_OF_IMAGES}/{THROUGHPUT})"
        parts.append(f"## Throughput against the floor\n\n{picture}\n\n{step_tables(run)}\n")
    if of_kind(run, "fit") or of_kind(run, "peer step"):
        picture = f"![Time over nnx on NumPy, and over the floor]({FOLDER_OF_IMAGES}/{PEERS})"
        parts.append(f"## Against peers\n\n{picture}\n\n{fit_tables(run)}\n")
    if of_kind(run, "peer step"):
        network = of_kind(run, "peer step")[0]["network"]
        title = f"### Train step of {network}, time over the floor of JAX for what runs on it, else of NumPy"
        parts.append(f"{title}\n\n{peer_step_table(run)}\n")
    if of_kind(run, "architecture"):
        parts.append(f"## Other layers\n\n{architecture_tables(run)}\n")
    if of_kind(run, "estimator"):
        picture = (
            f"![Speed over scikit-learn's against the number of samples]({FOLDER_OF_IMAGES}/{ESTIMATOR})"
        )
        told = f"{ESTIMATORS}\n\n{picture}\n\n{estimator_table(run)}"
        parts.append(f"## The estimators against scikit-learn's\n\n{told}\n")
    if of_kind(run, "small") or of_kind(run, "memory"):
        parts.append(f"## Small things\n\n{small_tables(run)}\n")
    return "\n".join(parts)


def write(run: dict, folder: Path) -> list[Path]:
    """Write page and pictures into `folder`, and return their paths."""
    images = folder / FOLDER_OF_IMAGES
    images.mkdir(parents=True, exist_ok=True)
    written = [folder / "benchmarks.md"]
    written[0].write_text(page(run))
    if of_kind(run, "step"):
        throughput_picture(run).savefig(images / THROUGHPUT, dpi=80)
        written.append(images / THROUGHPUT)
    if of_kind(run, "fit") or of_kind(run, "peer step"):
        peers_picture(run).savefig(images / PEERS, dpi=80)
        written.append(images / PEERS)
    if of_kind(run, "estimator"):
        estimators_picture(run).savefig(images / ESTIMATOR, dpi=80)
        written.append(images / ESTIMATOR)
    return written


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="JSON files that pytest-benchmark saved")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of benchmarks.md")
    options = parser.parse_args()
    run = load(options.files or [newest_saved()])
    for path in write(run, options.output):
        print(path)


if __name__ == "__main__":
    main()
