"""Passes of networks of other layers than dense ones: nnx on each backend and PyTorch, in turns."""

import pytest

from . import architectures
from .measure import interleave

PASSES = {"forward+backward": architectures.forward_and_backward, "train step": architectures.train_step}


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("case", architectures.CASES, ids=lambda case: case.name.split(",")[0])
def test_architecture(benchmark, what, case, backends):
    benchmark.group = f"{what}, {case.name}, batch {case.batch}"
    runs = PASSES[what](case, backends)
    measured = interleave(runs, budget=6.0, settle=True, benchmark=benchmark)
    base = next(iter(runs))
    benchmark.extra_info |= {
        "kind": "architecture",
        "what": what,
        "network": case.name,
        "batch": case.batch,
        "base": base,
        "times": measured.table(base),
    }
