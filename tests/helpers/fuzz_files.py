"""Files changed on purpose: `python fuzz_files.py COUNT` loads so many, within little memory.

Each either loads or is a ValueError of one line that names the file. What was not is kept in corpus/.
`python fuzz_files.py 0` loads the files of corpus/ alone.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import nnx
from nnx import layers
from nnx.compare.trial import trial_model
from nnx.registry import REGISTRIES
from nnx.saving import files

CORPUS = Path(__file__).parents[1] / "corpus"
MEMORY = 2 * 2**30
FOLDER = Path(tempfile.mkdtemp())

CLASSES = [
    {"kind": kind, "class_name": cls.__name__, "config": {}}
    for kind, registry in REGISTRIES.items()
    for cls in {id(entry): entry for entry in registry._entries.values()}.values()
]
NUMBERS = [
    0,
    1,
    2,
    3,
    -1,
    10**6,
    10**9,
    10**12,
    2**31,
    2**63,
    2**64,
    10**40,
    10**400,
    0.5,
    1e308,
    float("nan"),
]
VALUES = st.one_of(
    st.sampled_from(
        [*NUMBERS, float("inf"), -float("inf"), True, None, "", "relu", "../../etc/passwd", "\ud800", "a/b"]
    ),
    st.sampled_from(
        [[], {}, [[]], [None], [0], [-1], [10**12], [10**12] * 40, [10**9, 10**9], ["x"] * 3, [[1, 2]] * 4]
    ),
    st.sampled_from(CLASSES),
    st.sampled_from(REGISTRIES["layer"].names()),
    st.integers(),
    st.text(max_size=5),
    st.builds(
        lambda text, n: text * n, st.sampled_from(["A", "{", "os.system('exit')"]), st.integers(1, 3000)
    ),
)


def bases() -> list[bytes]:
    """Return the files that are changed: one of every layer, one of several inputs, one with all optimizer parts."""
    trial = trial_model()
    every = nnx.Sequential([layers.Input((4, 18)), *trial.layers[1:]], seed=0)
    every.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    small = nnx.Sequential(
        [layers.Dense(2, "relu", input_shape=(3,)), layers.BatchNormalization()], seed=0, dtype="float16"
    )
    rate = nnx.schedules.Warmup(5, nnx.schedules.ExponentialDecay(0.01, 10, 0.9))
    small.compile(nnx.optimizers.Adam(rate), "mse", metrics=["mae", nnx.metrics.F1Score()])
    branches = {"a": layers.Dense(2), "b": [layers.Embedding(4, 2), layers.Flatten()]}
    several = nnx.Model(
        layers.Chain([layers.Inputs(branches), layers.Outputs(layers.Dense(1), layers.Dense(2))]), seed=0
    )
    several.build({"a": (3,), "b": (2,)})
    found = []
    for model in (every, small, several):
        model.save(FOLDER / "base.nnx")
        found.append((FOLDER / "base.nnx").read_bytes())
    return found


def places(tree, path=()):
    """Yield the path to everything in plain data."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def trees(draw, tree):
    """Plain data with one to four changes."""
    sys.setrecursionlimit(50_000)  # to make them; they are loaded under the usual one
    for _ in range(draw(st.integers(1, 4))):
        tree = json.loads(json.dumps(tree))
        *above, last = draw(st.sampled_from([path for path in places(tree) if path]))
        inside = at(tree, above)
        change = draw(st.sampled_from(["replace"] * 5 + ["delete", "add", "copy", "repeat", "nest"]))
        if change == "replace":
            inside[last] = json.loads(json.dumps(draw(VALUES)))
        elif change == "delete":
            del inside[last]
        elif change == "add" and isinstance(inside, dict):
            inside[draw(st.text(max_size=4))] = json.loads(json.dumps(draw(VALUES)))
        elif change == "copy":
            inside[last] = json.loads(json.dumps(at(tree, draw(st.sampled_from(list(places(tree)))))))
        elif change == "repeat":
            inside[last] = [inside[last]] * draw(st.sampled_from([2, 3, 100, 1000]))
        elif change == "nest":
            wrapper = draw(
                st.sampled_from(["Chain", "Residual", "TimeDistributed", "Parallel", "Bidirectional", "list"])
            )
            inside[last] = nested(inside[last], wrapper, draw(st.sampled_from([1, 5, 30, 70, 150, 400])))
        if len(json.dumps(tree)) > 300_000:
            break
    return tree


def nested(value, wrapper: str, depth: int):
    """Return a layer inside so many others."""
    argument = {"Chain": "layers", "Parallel": "branches", "Residual": "inner"}.get(wrapper, "layer")
    for _ in range(depth):
        inner = [value] if wrapper in ("Chain", "Parallel", "list") else value
        value = (
            inner
            if wrapper == "list"
            else {"kind": "layer", "class_name": wrapper, "config": {argument: inner}}
        )
    return value


@st.composite
def contents(draw, whole: list[bytes]):
    """The bytes of a file with changes in its description, its header, its numbers or anywhere."""
    content = draw(st.sampled_from(whole))
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = draw(st.sampled_from(["description"] * 5 + ["header", "numbers", "bytes"]))
    if kind == "description":
        text = json.dumps(draw(trees(json.loads(header["__metadata__"]["nnx"]))))
        (FOLDER / "base.nnx").write_bytes(content)
        arrays, _ = files.read(FOLDER / "base.nnx")
        return save(arrays, metadata={"nnx": text, "checksum": files.checksum(text, arrays)})
    if kind == "header":
        changed = json.dumps(draw(trees(header))).encode()
        return len(changed).to_bytes(8, "little") + changed + data
    if kind == "numbers":
        (FOLDER / "base.nnx").write_bytes(content)
        arrays, description = files.read(FOLDER / "base.nnx")
        name, text = draw(st.sampled_from(sorted(arrays))), json.dumps(description)
        other = st.sampled_from([np.nan, np.inf, np.zeros((3, 3)), np.zeros((0, 2)), np.zeros(2, np.int64)])
        arrays[name] = np.asarray(draw(other)) if draw(st.booleans()) else arrays[name].astype(np.float16)
        return save(arrays, metadata={"nnx": text, "checksum": files.checksum(text, arrays)})
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, min(len(changed), length + 8) - 1))
        changed[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(changed[: draw(st.sampled_from([None, None, draw(st.integers(0, len(changed)))]))])


def load(content: bytes) -> str:
    """Return the error of a file, or "" if it loads; fail if it is none that a user can read."""
    path = FOLDER / "changed.nnx"
    path.write_bytes(content)
    sys.setrecursionlimit(1000)
    try:
        nnx.load(path)
    except ValueError as error:
        said, cause = str(error), error.__context__
        assert not isinstance(cause, MemoryError), said  # it had asked for it
    else:
        return ""
    assert str(path) in said, said
    assert "\n" not in said, said
    assert len(said) < 5000
    return said


def main(count: int):
    whole, seen = bases(), {"errors": 0, "loaded": 0, "slowest": 0.0}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for path in sorted(CORPUS.glob("*.nnx")):
        assert load(path.read_bytes()), f"{path} loads"
        seen["errors"] += 1

    @settings(max_examples=count, deadline=None, database=None, derandomize=count < 1000,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(contents(whole))
    def try_one(content):
        start = time.perf_counter()
        (FOLDER / "last.nnx").write_bytes(content)
        seen["errors" if load(content) else "loaded"] += 1
        if (spent := time.perf_counter() - start) > seen["slowest"]:
            seen["slowest"] = spent
            (FOLDER / "slowest.nnx").write_bytes(content)

    if count:
        try_one()
    print(FOLDER, json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]))
