"""Data larger than memory: the same numbers as in memory, in the same order, and a bound on what is held."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import train_out_of_core

import nnx
from nnx import callbacks, layers
from nnx.data import lazy_arrays, out_of_core, prefetch
from nnx.random import SHUFFLE, generator
from nnx.training.preparation import prepared

RNG = np.random.default_rng(0)
X = RNG.standard_normal((230, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 230)
BLOCK, WINDOW = 10, 40


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    """Read nothing as a whole, and small windows: of 40 samples, in blocks of 10."""
    monkeypatch.setattr(lazy_arrays, "READ_WHOLE", 0)
    monkeypatch.setattr(out_of_core, "BLOCK_BYTES", BLOCK * 24)
    monkeypatch.setattr(out_of_core, "WINDOW_BYTES", WINDOW * 24)


class Source:
    """An array that is read by slices, which it notes; with a fault, that comes in their place."""

    def __init__(self, values, chunks=None, fault=None):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.chunks, self.fault, self.read = chunks, fault, []

    def __getitem__(self, part):
        assert isinstance(part.start, int)
        assert isinstance(part.stop, int)
        self.read.append((part.start, part.stop))
        if self.fault is not None and part.start >= 100:
            return self.fault(self.values[part])
        return self.values[part]


def memory_map(values, tmp_path, name="x"):
    np.save(tmp_path / f"{name}.npy", values)
    return np.load(tmp_path / f"{name}.npy", mmap_mode="r")


def hdf5(values, tmp_path, name="x"):
    file = pytest.importorskip("h5py").File(tmp_path / f"{name}.h5", "w")
    return file.create_dataset("X", data=values, chunks=(7, *values.shape[1:]), compression="gzip")


def zarr(values, tmp_path, name="x"):
    created = pytest.importorskip("zarr").create_array(
        tmp_path / f"{name}.zarr", shape=values.shape, dtype=values.dtype, chunks=(7, *values.shape[1:])
    )
    created[:] = values
    return created


KINDS = {"memmap": memory_map, "h5py": hdf5, "zarr": zarr, "slices": lambda values, *_: Source(values)}


def build(backend=None, **settings):
    model = nnx.Sequential(
        [layers.Dense(8, "relu"), layers.Dropout(0.2), layers.Dense(3, "softmax")], seed=1, backend=backend
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **settings)
    model.build((6,))
    return model


def fit(model, x, y, epochs=3, **settings):
    return model.fit(x, y, batch_size=16, epochs=epochs, verbose=0, **settings).history


def as_read(model, samples):
    """Return a function for `shuffle` that visits arrays in memory as `fit` visits these samples."""

    def order(numbers):
        rng = generator(model.seed, SHUFFLE, model.step)
        return np.concatenate(list(samples.order(True, lambda: rng)))

    return order


def same(backend, found, expected):
    """Assert that two runs gave the same bits; on JAX, where XLA compiles another program, nearly so."""
    if backend.name == "jax":
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    else:
        np.testing.assert_array_equal(found, expected)


def same_runs(model, found, other, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        same(model.backend, found[name], expected[name])
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        same(model.backend, one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_in_memory_in_the_same_order(any_backend, kind, tmp_path):
    source = KINDS[kind](X, tmp_path)
    y = KINDS[kind](Y, tmp_path, "y") if kind in ("memmap", "h5py") else Y
    weight = np.linspace(0, 2, 230)
    settings = {"sample_weight": weight, "class_weight": {1: 2.0}, "validation_split": 0.2}
    model, other = build(any_backend), build(any_backend)
    found = fit(model, source, y, **settings)
    order = as_read(other, prepared(model, source, y).part(0, 184))
    expected = fit(other, X, Y, shuffle=order, validation_batch_size=256, **settings)
    same_runs(model, found, other, expected)
    same(any_backend, model.evaluate(source, y, 50, verbose=0), other.evaluate(X, Y, 50, verbose=0))
    same(any_backend, model.predict(source, 50), other.predict(X, 50))
    same(any_backend, any_backend.to_numpy(model(source)), any_backend.to_numpy(other(X)))
    same(any_backend, model.train_on_batch(source, y), other.train_on_batch(X, Y))
    assert not [thread for thread in threading.enumerate() if thread.name == prefetch.NAME]


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64, 100, 230, 1000])
@pytest.mark.parametrize("shuffle", [False, lambda numbers: np.roll(numbers, 3)[::2]], ids=["no", "function"])
def test_batches_of_any_size(batch_size, shuffle, tmp_path):
    for source in (Source(X), memory_map(X, tmp_path)):
        model, other = build(), build()
        settings = {"batch_size": batch_size, "epochs": 2, "verbose": 0, "shuffle": shuffle}
        found = model.fit(source, Y, **settings).history
        same_runs(model, found, other, other.fit(X, Y, **settings).history)


def test_several_inputs_and_outputs_of_which_some_are_large(tmp_path):
    def made():
        inputs = layers.Inputs({"left": layers.Dense(3), "right": layers.Dense(3)}, merge="concat")
        outputs = layers.Outputs({"kind": layers.Dense(3, "softmax"), "size": layers.Dense(1)})
        model = nnx.Sequential([inputs, outputs], seed=0)
        model.compile("adam", {"kind": "sparse_categorical_crossentropy", "size": "mse"})
        return model

    right, size = X[:, ::-1].copy(), X[:, :1]
    large = ({"left": hdf5(X, tmp_path), "right": right}, {"kind": Y, "size": Source(size)})
    small = ({"left": X, "right": right}, {"kind": Y, "size": size})
    model, other = made(), made()
    found = fit(model, *large)
    same_runs(model, found, other, fit(other, *small, shuffle=as_read(other, prepared(model, *large))))
    np.testing.assert_array_equal(model.predict(large[0])["kind"], other.predict(small[0])["kind"])


def test_categories_and_single_features_are_read_by_slices():
    numbers = RNG.integers(0, 5, (230, 1))
    model = nnx.Sequential([layers.Embedding(5, 3), layers.Flatten(), layers.Dense(3, "softmax")], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    assert np.isfinite(fit(model, Source(numbers), Y)["loss"]).all()
    with pytest.raises(ValueError, match="X has the value 9 at row 117, column 0: the model's Embedding"):
        fit(model, Source(np.where(np.arange(230)[:, None] == 117, 9, numbers)), Y)
    model = nnx.Sequential([layers.Dense(3, "softmax", input_shape=(1,))], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    assert np.isfinite(fit(model, Source(X[:, 0]), Y)["loss"]).all()


# The order


def orders(samples, *seeds):
    return [
        np.concatenate(list(samples.order(True, lambda seed=seed: np.random.default_rng(seed))))
        for seed in seeds
    ]


def test_windows_are_blocks_of_rows_shuffled():
    samples = prepared(build(), Source(X), Y)
    first, again, other = orders(samples, 0, 0, 1)
    assert sorted(first) == list(range(230))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    window = next(iter(samples.order(True, lambda: np.random.default_rng(0))))
    assert len(window) == WINDOW
    blocks = {int(n) // BLOCK for n in window}
    assert len(blocks) == WINDOW // BLOCK
    assert blocks != {0, 1, 2, 3}
    assert blocks != {int(n) // BLOCK for n in other[:WINDOW]}
    assert (np.diff(window) == 1).sum() < WINDOW // 4


def test_an_epoch_reads_each_row_once_in_slices_of_whole_chunks():
    source = Source(X, chunks=(7, 6))
    samples = prepared(build(), source, Y)
    list(samples.batches(samples.order(True, lambda: np.random.default_rng(0)), 16))
    covered = [n for start, stop in source.read for n in range(start, stop)]
    assert sorted(covered) == list(range(230))
    assert all(start % 14 == 0 and (stop % 14 == 0 or stop == 230) for start, stop in source.read)


def test_a_shuffle_that_numbers_what_is_not_there():
    for wrong in (lambda n: n + 1, lambda n: n - 1):
        with pytest.raises(ValueError, match="must return sample indices from 0 to 229"):
            fit(build(), Source(X), Y, shuffle=wrong)


# What is wrong


def spoilt(row, value=np.nan):
    changed = X.copy()
    changed[row, 2] = value
    return changed


def labelled(row, value):
    changed = Y.copy()
    changed[row] = value
    return changed


def test_errors_name_the_row_in_the_whole_and_come_in_their_turn(any_backend):
    for x, y, message in (
        (spoilt(157), Y, "X has the value nan at row 157, column 2"),
        (X, labelled(157, 3), "got 3 at row 157"),
    ):
        model = build(any_backend)
        for y_given in (Source(y), y):
            model = build(any_backend)
            with pytest.raises(ValueError, match=message) as caught:
                fit(model, Source(x), y_given, shuffle=False)
            assert "\n" not in str(caught.value)
        # Labels in memory are looked at before anything is computed.
        assert model.step == (0 if y is not Y else 120 // 16)
        assert np.isfinite(fit(model, X, Y)["loss"]).all()
    with pytest.raises(ValueError, match="X has the value nan at row 157"):
        build(any_backend).predict(Source(spoilt(157)), 50)
    with pytest.raises(ValueError, match="nan at row 200"):  # of the validation
        fit(build(any_backend), Source(spoilt(200)), Y, validation_split=0.2)


def test_shapes_are_told_before_anything_is_read():
    for x, y, message in (
        (Source(X[:, :3]), Y, r"\(batch, 6\), got \(230, 3\): it was built for 6 features"),
        (Source(X), Y[:-1], "X has 230 samples, y has 229"),
        (Source(X), Source(Y[:-1]), "X has 230 samples, y has 229"),
        (Source(X.astype("U5")), Y, "X must be numbers, got dtype <U5"),
        (Source(X), None, "y is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(build(), x, y)
        assert x.read == []


def test_a_source_that_gives_other_shapes_or_raises():
    with pytest.raises(ValueError, match=r"X\[\d+:\d+\] gave an array of shape \(\d+, 5\), not \(\d+, 6\)"):
        fit(build(), Source(X, fault=lambda part: part[:, :5]), Y, shuffle=False)

    def broken(part):
        raise error

    error, model = OSError("disk on fire"), build()
    with pytest.raises(OSError, match="disk on fire") as caught:
        fit(model, Source(X, fault=broken), Y, shuffle=False)
    assert caught.value is error
    assert "broken" in [entry.name for entry in caught.traceback]
    assert model.step == 120 // 16  # windows of 40: it is the fourth


# Going on


def test_goes_on_with_the_same_order(tmp_path):
    def run(folder, epochs, x=X):
        saving = callbacks.ModelCheckpoint(tmp_path / folder / "best.nnx", "loss", save_state=True)
        model = build()
        source = Source(x)
        return model, fit(model, source, Y, epochs, callbacks=[saving], resume=tmp_path / folder), source

    model, expected, _ = run("whole", 4)
    _, _, source = run("parts", 2)
    # What is compared is some of the samples, not all; the first 32 tell whether the loss suits.
    looked_at = sum(stop - start for start, stop in source.read) - 2 * 230 - 32
    assert 0 < looked_at <= out_of_core.IDENTIFYING_SAMPLES
    other, found, _ = run("parts", 4)
    same_runs(other, found, model, expected)
    with pytest.raises(ValueError, match="of a run with another training data"):
        run("parts", 5, X + 1)


# Memory


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of NumPy and one of HDF5, of 400 MB each, gone afterwards."""
    h5py = pytest.importorskip("h5py")
    folder, shape = tmp_path_factory.mktemp("large"), (200_000, 500)
    paths = {"npy": folder / "x.npy", "h5": folder / "x.h5"}
    part = RNG.standard_normal((20_000, 500), dtype=np.float32)
    mapped = np.lib.format.open_memmap(paths["npy"], "w+", np.float32, shape)
    with h5py.File(paths["h5"], "w") as file:
        stored = file.create_dataset("X", shape, np.float32, chunks=(262, 500))  # as blocks are
        for start in range(0, shape[0], len(part)):
            mapped[start : start + len(part)] = stored[start : start + len(part)] = part + start / shape[0]
    del mapped
    yield paths
    for path in paths.values():
        path.unlink()


def child(*arguments):
    command = [sys.executable, train_out_of_core.__file__, *map(str, arguments)]
    # One thread: several would wait for each other where tests run side by side. One arena of memory: glibc
    # keeps what is freed for each thread, which with XLA's adds up to 50 MB, another number each time.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


MEBIBYTES = 128
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")


@pytest.fixture(scope="module")
def in_memory(files):
    """What a process without a limit has to say that reads the whole file and visits it in the same order."""
    return json.loads(child(files["npy"], "numpy", 0, "compare").stdout)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backend"), [("npy", "numpy"), ("h5", "numpy"), ("h5", "jax")])
def test_a_file_of_three_times_the_memory_trains(files, in_memory, kind, backend):
    if backend == "jax":
        pytest.importorskip("jax")
    done = child(files[kind], backend, 0 if backend == "jax" else MEBIBYTES)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] > 2.9 * (MEBIBYTES << 20)
    assert in_memory["grown"] > in_memory["bytes"]  # so the measure measures
    if kind == "h5":  # what is mapped lies in memory as long as nobody else wants it
        assert found["grown"] < MEBIBYTES << 20
    rounding = {"rtol": 1e-4} if backend == "jax" else {"rtol": 0}
    for told, expected in zip(found["told"], in_memory["told"], strict=True):
        np.testing.assert_allclose(told, expected, **rounding)


@LINUX
@pytest.mark.slow
def test_numpy_cannot_read_the_whole_under_that_limit(files):
    failed = child(files["h5"], "numpy", MEBIBYTES, "read")
    assert failed.returncode == 1
    assert "MemoryError: Unable to allocate 381. MiB" in failed.stderr
