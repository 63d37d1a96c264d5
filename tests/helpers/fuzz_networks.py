"""Random networks trained in all ways that must agree: `python fuzz_networks.py --seconds 3600`, or `make fuzz`.

Each network is trained by plain steps on NumPy, the reference, and then compiled, in small blocks, by Numba, in
float32, from a file, after a visit to JAX, and on JAX. What differs is printed with its seed and its program.
"""

import argparse
import itertools
import time
from collections import Counter

import numpy as np
import own_layers
import random_networks
from random_networks import back_from_jax, blocks_of, differences, from_its_file, numpy, run

import nnx

SMALL = 16  # elements: what is larger runs in blocks


def check(program: str, ways=("compiled", "blocks", "float32", "saved")) -> dict[str, list[str]]:
    """Train a program in some ways; return, for each that does not agree with the plain steps, what differs.

    On NumPy all bits must be the same but where Numba compiles; on JAX numbers are equal to 1e-8.
    """
    space = random_networks.load(program)
    plain, wrong = run(program, numpy(compiled=False)), {}
    for way in ways:
        if way == "compiled":
            lines = differences(run(program, numpy(compiled=True)), plain)
        elif way in ("blocks", "numba"):
            with blocks_of(SMALL):
                lines = differences(run(program, numpy(compiled=True, numba=way == "numba")), plain, 1e-8)
        elif way == "float32":
            lines = differences(*(run(program, numpy(compiled), "float32") for compiled in (True, False)))
        elif way == "saved" and space["IS_PORTABLE"] and space["CAN_BE_SAVED"]:
            lines = differences(run(program, numpy(compiled=True), between=from_its_file), plain)
        elif way == "moved" and space["IS_PORTABLE"]:
            lines = differences(run(program, numpy(compiled=True), between=back_from_jax), plain)
        elif way == "jax" and space["IS_PORTABLE"] and space["IS_SMOOTH"] and "error" not in plain:
            lines = differences(run(program, nnx.as_backend("jax")), plain, 1e-8)
        else:
            continue
        if lines:
            wrong[way] = lines
    if "error" in plain:
        wrong["plain"] = [plain["error"]]
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: 600)")
    parser.add_argument("--networks", type=int, help="how many, instead")
    parser.add_argument("--seed", type=int, help="the first seed (default: drawn)")
    parser.add_argument(
        "--ways", default="compiled,blocks,float32,saved,moved,numba,jax", help="which (default: all)"
    )
    parser.add_argument("--nnx-only", action="store_true", help="without layers as users write them")
    parser.add_argument("--quiet", action="store_true", help="print no programs")
    options = parser.parse_args()
    first = np.random.SeedSequence().entropy % 10**9 if options.seed is None else options.seed
    end, found, count = time.monotonic() + options.seconds, Counter(), 0
    for count, seed in enumerate(itertools.count(first)):
        if count == options.networks or (options.networks is None and time.monotonic() > end):
            break
        program = random_networks.text(seed, with_own=not options.nnx_only)
        wrong = check(program, options.ways.split(","))
        found.update(wrong.keys())
        for way, lines in wrong.items():
            print(f"seed {seed}, {way}: {len(lines)} differ\n    " + "\n    ".join(lines[:3]), flush=True)
        if wrong and not options.quiet:
            print(program, flush=True)
    print(f"seeds {first} to {first + count - 1}: {count} networks, {dict(found) or 'all agree'}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    with own_layers.registered():
        main()
