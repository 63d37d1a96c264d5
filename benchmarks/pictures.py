"""The pictures of docs/benchmarks.md, from what the benchmarks recorded."""

# Okabe and Ito's palette, which colour-blind people can tell apart; markers differ as well.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"),
          ("#56B4E9", "P"), ("#000000", "X")]  # fmt: skip


def of_kind(run: dict, kind: str) -> list[dict]:
    """Return what was recorded by the benchmarks of one kind."""
    infos = [benchmark["extra_info"] for benchmark in run["benchmarks"]]
    return [info for info in infos if info.get("kind") == kind]


def unique(values) -> list:
    """Return the different values in the order in which they first appear."""
    return list(dict.fromkeys(values))


def faster(ratio: dict) -> dict:
    """Return how many times as fast something is, from quartiles of how many times as long it takes."""
    return {"low": 1 / ratio["high"], "median": 1 / ratio["median"], "high": 1 / ratio["low"]}


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


def estimators_picture(run: dict):
    """Return a figure: how many times as fast as scikit-learn's a fit is, against the number of samples."""
    from matplotlib.figure import Figure

    infos = of_kind(run, "estimator")
    widths = unique(tuple(i["widths"]) for i in infos)
    names = unique(n for i in infos for n in i["times"] if n != "scikit-learn")
    figure = Figure(figsize=(3.7 * len(widths) + 0.6, 3.6), layout="constrained")
    for ax, width in zip(figure.subplots(1, len(widths), squeeze=False, sharey=True)[0], widths, strict=True):
        chosen = sorted((i for i in infos if tuple(i["widths"]) == width), key=lambda i: i["samples"])
        for (colour, marker), name in zip(STYLES, names, strict=False):
            found = [(i["samples"], faster(i["times"][name]["ratio"])) for i in chosen if name in i["times"]]
            x, ratios = zip(*found, strict=True)
            medians = [ratio["median"] for ratio in ratios]
            ax.errorbar(
                x, medians, _whiskers(ratios), color=colour, marker=marker, ms=5, lw=1, capsize=3, label=name
            )
        ax.axhline(1, color="black", lw=1)
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_xticks([i["samples"] for i in chosen], [f"{i['samples']:,}" for i in chosen], fontsize=8)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.set_xlabel("samples")
        ax.set_title(f"hidden_layer_sizes={width}", fontsize=9)
    figure.axes[0].set_ylabel("times as fast as scikit-learn")
    figure.axes[0].legend(fontsize=8)
    return figure


def _whiskers(ratios):
    return [[r["median"] - r["low"] for r in ratios], [r["high"] - r["median"] for r in ratios]]
