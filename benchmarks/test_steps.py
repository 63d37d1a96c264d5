"""Forward, forward and backward, and train steps against the floor, on each backend.

pytest-benchmark's table compares the backends at one batch size; `extra_info` has the floor.
"""

import pytest

from . import networks
from .measure import interleave

PASSES = {"forward": networks.forward, "forward+backward": networks.gradients, "train step": networks.train}


@pytest.mark.parametrize("batch", networks.BATCH_SIZES)
@pytest.mark.parametrize("network", [networks.WIDE, networks.DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize("what", PASSES)
def test_steps(benchmark, what, network, batch, backend, dtype):
    backward, looped = what != "forward", what == "train step"
    steps = networks.steps_a_run(batch, training=looped)
    benchmark.group = f"{what}, {network.name}, batch {batch}, {dtype} ({steps} steps a round)"
    functions = {
        "step": PASSES[what](network, backend, batch, steps, dtype),
        "floor": networks.floor(network, backend, batch, steps, dtype, backward=backward, looped=looped),
    }
    if looped:
        functions["gathering"] = networks.train(network, backend, batch, steps, dtype, gathers=True)
    measured = interleave(functions, budget=0.8, benchmark=benchmark)
    flops = network.flops(batch, backward)
    step, floor = measured.time("step", steps), measured.time("floor", steps)
    benchmark.extra_info |= {
        "kind": "step",
        "what": what,
        "network": network.name,
        "batch": batch,
        "dtype": dtype,
        "backend": backend.name,
        "steps_a_round": steps,
        "seconds": step,
        "samples_per_second": batch / step["median"],
        "gflops": flops / step["median"] / 1e9,
        "floor_seconds": floor,
        "floor_gflops": flops / floor["median"] / 1e9,
        "floor_ratio": measured.ratio("step", "floor"),
        "compile_seconds": measured.first["step"],
    }
    if "gathering" in functions:
        benchmark.extra_info["gathering_ratio"] = measured.ratio("gathering", "floor")
