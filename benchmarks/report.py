"""Turn a saved run into docs/benchmarks.md and its pictures: `python -m benchmarks.report [FILES]`.

Without files, the newest one that `make bench` saved under .benchmarks/ is taken.
"""

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Okabe and Ito's palette, which colour-blind people can tell apart; markers differ as well.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"),
          ("#56B4E9", "P"), ("#000000", "X")]  # fmt: skip
FOLDER_OF_IMAGES = "images"
THROUGHPUT, PEERS = "bench_throughput.png", "bench_peers.png"


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


def of_kind(run: dict, kind: str) -> list[dict]:
    """Return what was recorded by the benchmarks of one kind."""
    infos = [benchmark["extra_info"] for benchmark in run["benchmarks"]]
    return [info for info in infos if info.get("kind") == kind]


def unique(values) -> list:
    """Return the different values in the order in which they first appear."""
    return list(dict.fromkeys(values))


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
            for info in sorted(chosen, key=lambda i: i["batch"])
        ]
        header = ["batch", "backend", "time", "samples/s", "GFLOP/s", "floor GFLOP/s", "time over floor",
                  "compilation"]  # fmt: skip
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


def faster(ratio: dict) -> dict:
    """Return how many times as fast something is, from quartiles of how many times as long it takes."""
    return {"low": 1 / ratio["high"], "median": 1 / ratio["median"], "high": 1 / ratio["low"]}


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
  means that all the rest (activations, loss, optimizer, gathering the batch, Python) takes 10% of the products'
  time. GFLOP/s count the products alone.
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
        parts.append(f"## The estimators against scikit-learn's\n\n{ESTIMATORS}\n\n{estimator_table(run)}\n")
    if of_kind(run, "small") or of_kind(run, "memory"):
        parts.append(f"## Small things\n\n{small_tables(run)}\n")
    return "\n".join(parts)


# Pictures


def throughput_picture(run: dict):
    """Return a figure: GFLOP/s of each backend against the batch size, its floor dashed."""
    from matplotlib.figure import Figure

    infos = of_kind(run, "step")
    networks, passes = unique(i["network"] for i in infos), unique(i["what"] for i in infos)
    backends = unique(i["backend"] for i in infos)
    size = (3.7 * len(passes) + 0.6, 2.9 * len(networks) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(networks), len(passes), squeeze=False, sharex=True, sharey=True)
    for row, network in zip(grid, networks, strict=True):
        for ax, what in zip(row, passes, strict=True):
            for (colour, marker), backend in zip(STYLES, backends, strict=False):
                chosen = [
                    i for i in infos if (i["network"], i["what"], i["backend"]) == (network, what, backend)
                ]
                chosen.sort(key=lambda i: i["batch"])
                x = [i["batch"] for i in chosen]
                ax.plot(x, [i["gflops"] for i in chosen], color=colour, marker=marker, ms=5, label=backend)
                floor = [i["floor_gflops"] for i in chosen]
                ax.plot(
                    x, floor, color=colour, ls="--", lw=1.2, alpha=0.8, label=f"{backend}: products alone"
                )
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_title(f"{what}, {network}", fontsize=10)
            ax.set_xticks(
                unique(i["batch"] for i in infos), [str(b) for b in unique(i["batch"] for i in infos)]
            )
            ax.minorticks_off()
            ax.grid(alpha=0.3)
    for ax in grid[-1]:
        ax.set_xlabel("batch size")
    for row in grid:
        row[0].set_ylabel("GFLOP/s")
    grid[0, 0].legend(fontsize=8)
    return figure


def peers_picture(run: dict):
    """Return a figure: fits as ratios to nnx on its first backend, train steps as ratios to the floor."""
    from matplotlib.figure import Figure

    fits, steps = of_kind(run, "fit"), sorted(of_kind(run, "peer step"), key=lambda i: i["batch"])
    names = unique(n for i in [*fits, *steps] for n in i["times"] if not n.startswith("floor"))
    style = {name: STYLES[i % len(STYLES)] for i, name in enumerate(names)}
    figure = Figure(figsize=(11, 6.6 if fits and steps else 3.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1) if fits and steps else (figure, figure)
    if fits:
        for ax, info in zip(upper.subplots(1, len(fits), squeeze=False)[0], fits, strict=True):
            _fit_bars(ax, info, style)
    if steps:
        _step_lines(lower.subplots(), steps, names, style)
    return figure


def _fit_bars(ax, info, style):
    others = [name for name in info["times"] if name != info["base"]][::-1]
    for place, name in enumerate(others):
        ratio = info["times"][name]["ratio"]
        ax.barh(place, ratio["median"], xerr=_whiskers([ratio]), color=style[name][0], height=0.65, capsize=3)
        ax.annotate(f" {ratio['median']:.2f}", (ratio["high"], place), va="center", fontsize=8)
    ax.axvline(1, color="black", lw=1)
    ax.margins(x=0.15)
    ax.set_yticks(range(len(others)), others, fontsize=8)
    ax.set_xlabel(f"time over {info['base']}", fontsize=9)
    ax.set_title(f"fit: {info['task']}", fontsize=9)


def _step_lines(ax, steps, names, style):
    for place, name in enumerate(names):
        chosen = [i for i in steps if name in i["times"]]
        if not chosen:
            continue
        ratios = [i["times"][name]["ratio"] for i in chosen]
        colour, marker = style[name]
        # Drawn side by side, so that the bars of the quartiles can be told apart.
        x = [i["batch"] * 2 ** (0.06 * (place - len(names) / 2)) for i in chosen]
        medians = [ratio["median"] for ratio in ratios]
        ax.errorbar(
            x, medians, _whiskers(ratios), color=colour, marker=marker, ms=5, lw=1, capsize=3, label=name
        )
    batches = [i["batch"] for i in steps]
    ax.axhline(1, color="black", lw=1)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(batches, [str(batch) for batch in batches])
    ticks = (0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5, 10)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.set_xlabel("batch size")
    ax.set_ylabel(f"time over {steps[0]['base']}")
    ax.set_title(f"train step of {steps[0]['network']}", fontsize=9)
    ax.legend(fontsize=8)


def _whiskers(ratios):
    return [[r["median"] - r["low"] for r in ratios], [r["high"] - r["median"] for r in ratios]]


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
