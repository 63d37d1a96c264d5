"""Randomness that is the same on every backend.

Weights and shuffles are drawn on the host by `numpy.random.Generator`. Masks are drawn on the
device by a counter-based hash: element i of a layer's mask at one step is a fixed function of
(seed, step, layer, i), in 32-bit integer arithmetic that every array library does alike. No
generator has to be carried along, and any step can be repeated alone.

Source of the hash: "hash-prospector" by Christopher Wellons, the function
[16 21f0aaad 15 735a2d97 15], with a second word of key mixed in between its two rounds.
"""

from __future__ import annotations  # naming np.random in a signature would import it, 35 ms

import functools
import itertools

import numpy as np

__all__ = ["fold_name", "generator", "hash_bits", "next_seed", "set_random_seed", "step_keys"]

# What a seed is used for; keeps the streams apart.
WEIGHTS, SHUFFLE, MASKS = 0, 1, 2

Key = tuple[int, int]
"""Two words of 32 bits. Inside a compiled step they are scalars of the device."""

_seed: int | None = None
_models_seeded = itertools.count(1)


def set_random_seed(seed: int) -> None:
    """Make all models built from now on start from the same weights, shuffles and masks.

    Also seeds `random` and `numpy.random`, as Keras's function of this name does.
    """
    import random

    global _seed, _models_seeded
    _seed, _models_seeded = seed, itertools.count(1)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def next_seed() -> int:
    """Return the seed of a model that was given none: from `set_random_seed`, else unpredictable."""
    if _seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    number = next(_models_seeded)  # no two threads get the same
    return int(np.random.SeedSequence([_seed, number]).generate_state(1)[0] >> 1)


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Return the host generator for one purpose, for example `(SHUFFLE, step)`."""
    return np.random.default_rng([seed, *purpose])


# Keys are made for this many steps at a time: for one alone it takes as long.
_KEYS = 1024


def step_keys(seed: int, start: int, stop: int) -> np.ndarray:
    """Return the keys of steps start, ..., stop - 1 as an array of uint32, (steps, 2)."""
    first, last = start // _KEYS, max(start, stop - 1) // _KEYS
    parts = [_part_of_keys(seed, part) for part in range(first, last + 1)]
    keys = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return keys[start - first * _KEYS : stop - first * _KEYS]


@functools.lru_cache(maxsize=64)
def _part_of_keys(seed: int, part: int) -> np.ndarray:
    words = _mask_words(seed)
    steps = np.arange(part * _KEYS, (part + 1) * _KEYS, dtype=np.uint32)
    keys = np.stack([hash_bits(np, steps, *words[:2]), hash_bits(np, steps, *words[2:])], axis=1)
    keys.flags.writeable = False  # it is kept
    return keys


@functools.lru_cache(maxsize=64)
def _mask_words(seed: int) -> np.ndarray:
    return np.random.SeedSequence([seed, MASKS]).generate_state(4)


def fold_name(key: Key, name: str) -> Key:
    """Return the key of the draw called `name` in the step whose key is `key`.

    The name's words have 31 bits, so that they are valid in every library's integers.
    """
    first, second = _name_words(name)
    return key[0] ^ first, key[1] ^ second


@functools.cache
def _name_words(name: str) -> Key:
    import zlib  # here, for the time of `import nnx`

    forwards, backwards = name.encode(), name[::-1].encode()
    return zlib.crc32(forwards) >> 1, zlib.crc32(backwards + b"#") >> 1


def hash_bits(xp, counter, first, second):
    """Return 32 random bits for each element of `counter` (uint32) under the key (first, second).

    >>> import numpy as np
    >>> [int(bits) for bits in hash_bits(np, np.arange(3, dtype=np.uint32), 1, 2)]
    [1837664274, 3870660166, 112944513]
    """
    bits = counter ^ first
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD
    bits = bits ^ second
    bits = (bits ^ (bits >> 15)) * 0x735A2D97
    return bits ^ (bits >> 15)
