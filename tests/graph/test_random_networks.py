"""Random networks train to the same numbers with compiled steps and without, in blocks, by Numba, and on JAX.

Some networks are the same at each run, others are drawn anew: a failure prints seed and program. `make fuzz` runs this
for as long as one likes.
"""

import importlib.util

import numpy as np
import own_layers
import pytest
import random_networks
from every_backend import usable_or_skip
from fuzz_networks import check
from random_networks import differences, numpy, run

# Networks that showed a fault once, and a few in which much comes together.
KNOWN = (23, 47, 126, 1076, 10053, 10092)


@pytest.fixture(autouse=True)
def _own_layers_are_known():
    with own_layers.registered():
        yield


def expect_agreement(seed: int, ways, with_own: bool = True):
    program = random_networks.text(seed, with_own)
    wrong = check(program, ways)
    lines = [f"{way}: {line}" for way, found in wrong.items() for line in found[:3]]
    assert not wrong, "\n".join([f"seed {seed} (with_own={with_own}):", *lines, "", program])


def drawn(count: int) -> list[int]:
    """Return seeds that differ from run to run."""
    return np.random.default_rng().integers(0, 10**9, count).tolist()


@pytest.mark.parametrize("seed", KNOWN)
def test_known_networks_agree(seed):
    expect_agreement(seed, ("compiled", "blocks", "float32", "saved"))


@pytest.mark.parametrize("with_own", [True, False], ids=["layers as users write them", "nnx alone"])
@pytest.mark.parametrize("count", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_drawn_networks_agree(count, with_own):
    for seed in drawn(count):
        expect_agreement(seed, ("compiled", "blocks", "float32", "saved"), with_own)


def test_networks_agree_compiled_by_numba():
    if importlib.util.find_spec("numba") is None:
        pytest.skip("Numba is not installed")
    for seed in (60004, *drawn(1)):
        expect_agreement(seed, ("numba",))


def test_a_drawn_network_agrees_on_jax():
    usable_or_skip("jax")
    expect_agreement(*drawn(1), ("jax", "moved"), with_own=False)


def test_a_program_can_be_run_by_itself(capsys):
    program = random_networks.text(5)
    assert program == random_networks.text(5) != random_networks.text(6)
    exec(compile(program, "random network", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.count("'loss'") == 2


def test_a_difference_is_seen():
    plain = run(random_networks.text(5), numpy(compiled=False))
    for by, is_seen in ((3e-8, True), (3e-10, False)):
        other = {name: array + by if name == "fit 1, weight 0" else array for name, array in plain.items()}
        assert bool(differences(other, plain, 1e-8)) is is_seen
    failed = {"error": "ValueError: of one way alone"}
    assert differences(failed, plain)
    assert differences(plain, failed)


def test_new_memory_of_these_backends_is_full_of_nan():
    assert np.isnan(numpy(compiled=True).empty((2, 3), np.float32)).all()
