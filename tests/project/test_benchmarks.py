"""The benchmark suite's own helpers: statistics, floors, report. Nothing is timed here."""

import dataclasses
import importlib

import numpy as np
import pytest
from paths import ROOT

import nnx


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def module(name):
    return importlib.import_module(f"benchmarks.{name}")


def test_quartiles_are_those_of_numpy():
    values = np.random.default_rng(0).random(12).tolist()
    found = module("measure").quartiles(values)
    expected = np.percentile(values, [25, 50, 75])
    assert [found["low"], found["median"], found["high"]] == pytest.approx(expected)
    assert module("measure").quartiles([3.0]) == {"low": 3.0, "median": 3.0, "high": 3.0, "rounds": 1}


def test_functions_take_turns_and_ratios_are_those_of_a_round():
    calls = []
    given = {"a": iter([9.0, 1.0, 2.0, 4.0, 6.0]), "b": iter([5.0, 1.0, 1.0, 1.0, 2.0])}

    def clock(name):
        calls.append(name())
        return next(given[calls[-1]])

    functions = {"a": lambda: "a", "b": lambda: "b"}
    measured = module("measure").interleave(functions, repeats=3, clock=clock)
    assert calls == ["a", "b"] * 2 + ["b", "a"] * 3  # first, usual, then the rounds
    assert measured.seconds == {"a": [2.0, 4.0, 6.0], "b": [1.0, 1.0, 2.0]}
    assert measured.ratio("a", "b") == {"low": 2.5, "median": 3.0, "high": 3.5, "rounds": 3}
    assert measured.time("a", divided_by=2)["median"] == 2.0
    assert measured.first == {"a": 5.0, "b": 4.0}


def test_flops_of_the_floor_are_those_of_the_network():
    networks = module("networks")
    for network in (networks.WIDE, networks.DEEP):
        model = network.model("numpy")
        biases = sum(network.sizes[1:])
        relus = sum(network.sizes[1:-1])
        assert model.network.flops(network.sizes[:1]) - biases - network.flops(1, False) in (0, relus)
        backward = sum(4 * n * m for n, m in network.layers) - 2 * network.sizes[0] * network.sizes[1]
        assert network.flops(7, True) == 7 * (network.flops(1, False) + backward)


def test_the_floor_multiplies_what_the_flops_count():
    networks, counted = module("networks"), []

    def matmul(a, b, out=None):
        counted.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return np.dot(a, b, out=out)

    class Counting(type(nnx.as_backend("numpy"))):
        class xp:
            pass

    Counting.xp.matmul = staticmethod(matmul)
    tiny = networks.Network("tiny", (5, 4, 3))
    run = networks.floor(tiny, Counting(), batch=6, steps=2)
    counted.clear()
    run()
    assert sum(counted) == 2 * tiny.flops(6, backward=True)


@pytest.mark.parametrize("what", ["forward", "gradients", "train", "floor"])
def test_what_is_timed_runs(what, any_backend):
    networks = module("networks")
    if what == "floor" and any_backend.name == "array_api_strict":
        pytest.skip("nothing is measured on it")
    tiny = networks.Network("tiny", (5, 4, 3))
    run = getattr(networks, what)(tiny, any_backend, batch=6, steps=2)
    run()
    run()


@pytest.mark.parametrize("what", ["forward_and_backward", "train_steps"])
def test_what_is_timed_of_other_layers_runs(what, any_backend):
    architectures = module("architectures")
    for case in architectures.CASES:
        small = dataclasses.replace(case, batch=2)
        for run in getattr(architectures, what)(small, [any_backend]).values():
            run()
            run()


def test_looped_floor_runs_in_one_dispatch():
    networks, jax = module("networks"), nnx.as_backend("jax")
    networks.floor(networks.Network("tiny", (5, 4, 3)), jax, batch=6, steps=3, looped=True)()


def quartiles(median):
    return {"low": median * 0.9, "median": median, "high": median * 1.1, "rounds": 5}


def contest(base):
    times = {
        name: {"time": quartiles(0.01 * i), "ratio": quartiles(float(i)), "first": 0.0}
        for i, name in enumerate([base, "nnx, numpy", "PyTorch"], start=1)
    }
    return {"base": base, "times": times}


def saved_run():
    """Return what pytest-benchmark would save, with all that the report reads."""
    infos = [
        {"kind": "step", "what": what, "network": "784-10", "batch": batch, "dtype": "float32",
         "backend": backend, "seconds": quartiles(0.01), "samples_per_second": 1e4, "gflops": 0.5 * batch,
         "floor_gflops": 1.0 * batch, "floor_ratio": quartiles(1.23), "gathering_ratio": quartiles(1.29),
         "compile_seconds": 0.7}
        for what in ("forward", "train step") for batch in (1, 128) for backend in ("numpy", "jax")
    ]  # fmt: skip
    infos += [
        {"kind": "fit", "task": "digits", "samples": 100, "epochs": 2, "steps": 8, **contest("nnx, jax")},
        {"kind": "peer step", "network": "784-10", "batch": 1, **contest("floor, numpy")},
        {"kind": "peer step", "network": "784-10", "batch": 128, **contest("floor, numpy")},
        {"kind": "architecture", "what": "train step", "network": "CNN", "batch": 8, **contest("nnx, numpy")},
        {"kind": "estimator", "samples": 100, "widths": [10], "epochs": 2, **contest("scikit-learn")},
        {"kind": "small", "title": "Import", **contest("import numpy")},
        {"kind": "memory", "backend": "numpy", "peak": 3 << 20, "needed": 2 << 20, "ratio": 1.5},
    ]
    about = {
        "cpu": {"brand_raw": "Fast CPU 3000", "count": 2},
        "system": "Linux",
        "libraries": {"numpy": "2.0"},
    }
    return {
        "machine_info": about,
        "datetime": "2025-01-02T03:04:05",
        "benchmarks": [{"extra_info": info} for info in infos],
    }


def test_report_makes_page_and_pictures(tmp_path):
    page, *pictures = module("report").write(saved_run(), tmp_path)
    text = page.read_text()
    for expected in (
        "Fast CPU 3000",
        "numpy 2.0",
        "1.23 (1.11 to 1.35)",
        "PyTorch",
        "1.50",
        "Train step: CNN, batch 8",
        "2025-01-02",
    ):
        assert expected in text
    assert [p.name for p in pictures] == ["bench_throughput.png", "bench_peers.png", "bench_estimators.png"]
    for picture in pictures:
        assert f"(images/{picture.name})" in text
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_report_of_a_part_of_the_suite(tmp_path):
    run = saved_run()
    run["benchmarks"] = run["benchmarks"][:1]
    assert [p.name for p in module("report").write(run, tmp_path)] == [
        "benchmarks.md",
        "bench_throughput.png",
    ]


def test_report_without_a_saved_run_says_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="make bench"):
        module("report").newest_saved(tmp_path)
