"""Passes of networks of other layers than dense ones: nnx on each backend and PyTorch, in turns."""

import pytest

from . import architectures, networks
from .measure import interleave

PASSES = {
    "forward+backward": (architectures.forward_and_backward, 1),
    "train step": (architectures.train_steps, networks.FEWEST),
}


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("case", architectures.CASES, ids=lambda case: case.name.split(",")[0])
def test_architecture(benchmark, what, case, backends):
    benchmark.group = f"{what}, {case.name}, batch {case.batch}"
    functions, steps = PASSES[what]
    runs = functions(case, backends)
    measured = interleave(runs, budget=6.0, settle=True, benchmark=benchmark)
    base = next(iter(runs))
    benchmark.extra_info |= {
        "kind": "architecture",
        "what": what,
        "network": case.name,
        "batch": case.batch,
        "base": base,
        "times": measured.table(base, divided_by=steps),
    }
