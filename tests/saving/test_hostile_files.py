"""Files that are broken or made to do harm: an error of one line, in little memory, and never code."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from paths import TESTS
from safetensors.numpy import save

import nnx
from nnx import layers
from nnx.saving import files

FUZZ = TESTS / "helpers" / "fuzz_files.py"


@pytest.fixture
def saved(tmp_path):
    model = nnx.Sequential([layers.Dense(2, "relu", input_shape=(2,)), layers.BatchNormalization()], seed=0)
    model.compile("sgd", "mse")
    model.save(tmp_path / "net.nnx")
    return tmp_path / "net.nnx"


def test_any_byte_missing_or_any_bit_changed_is_told(saved):
    whole, path = saved.read_bytes(), saved.with_name("other.nnx")
    broken = [whole[:length] for length in range(0, len(whole), 7)]
    for place in range(0, len(whole) * 8, 13):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        broken.append(bytes(changed))
    for content in [*broken, whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^[^\n]*other\.nnx[^\n]*$"):
            nnx.load(path)
    path.write_bytes(whole)
    nnx.load(path)


@pytest.mark.slow
def test_changed_files_within_little_memory():
    """See fuzz_files.py: some hundred files made by Hypothesis, and those of corpus/."""
    done = subprocess.run([sys.executable, FUZZ, "250"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.split(" ", 1)[1])
    assert seen["errors"] > 150


def rewrite(path, edit):
    """Change description and arrays of a file, and give it the checksum that fits."""
    arrays, description = files.read(path)
    edit(description, arrays)
    text = json.dumps(description)
    path.write_bytes(save(arrays, metadata={"nnx": text, "checksum": files.checksum(text, arrays)}))


def first_layer(description):
    return description["network"]["config"]["layers"][0]["config"]


def insert(name, **config):
    def edit(description, arrays):
        layer = {"kind": "layer", "class_name": name, "config": config}
        description["network"]["config"]["layers"].insert(0, layer)

    return edit


def nest(description, arrays):
    for _ in range(300):
        description["network"] = {
            "kind": "layer",
            "class_name": "Residual",
            "config": {"inner": description["network"]},
        }


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d, a: first_layer(d).update(units=10**12),
            r"layer 'dense': a weight of shape \(2, 1000000000000\) was asked for where",
        ),
        (lambda d, a: first_layer(d).update(units=10**400), "was asked for where there are"),
        (
            lambda d, a: first_layer(d).update(units=3),
            r"batch_normalization/beta has shape \(2,\), and the model \(3,\)",
        ),
        (lambda d, a: first_layer(d).update(units="2"), "units must be a whole number"),
        (lambda d, a: first_layer(d).update(evil=1), "unknown argument of Dense 'evil'"),
        (lambda d, a: d.update(input_shape=[10**13]), "more than any machine can hold"),
        (insert("RepeatVector", n=10**12), "more than any machine can hold"),
        (insert("UpSampling2D", size=[10**9, 10**9]), "UpSampling2D"),
        (insert("Reshape", target_shape=[10**15, -1]), "Reshape"),
        (insert("LSTM", units=10**9), "LSTM"),
        (nest, "recursion|does not fit"),
        (lambda d, a: d.update(step=-1), "its name, seed or step is not valid"),
        (lambda d, a: d.update(seed="0"), "its name, seed or step is not valid"),
        (lambda d, a: d["compiled"].update(optimizer="os.system"), "unknown optimizer"),
        (lambda d, a: a.update({"params/dense/bias": np.array([1, 2])}), "holds int64, not real numbers"),
        (lambda d, a: a.update({"params/../x": np.zeros(1)}), r"differ in params/\.\./x"),
        (lambda d, a: a.pop("params/dense/bias"), "differ in params/dense/bias"),
        (
            lambda d, a: a.update({"params/dense/bias": np.array([np.nan, 0], np.float32)}),
            "infinite or not a number",
        ),
    ],
)
def test_what_a_file_says(saved, edit, message):
    rewrite(saved, edit)
    with pytest.raises(ValueError, match=rf"^[^\n]*net\.nnx[^\n]*({message})[^\n]*$"):
        nnx.load(saved)


def test_weights_that_are_not_finite_can_be_asked_for(saved):
    rewrite(
        saved,
        lambda description, arrays: arrays.update({"params/dense/bias": np.array([np.nan, 0], np.float32)}),
    )
    model = nnx.load(saved, check_finite=False)
    assert np.isnan(model.get_weights()[1][0])
    with pytest.raises(ValueError, match="check_finite=False reads it all the same"):
        model.load_weights(saved)
    model.load_weights(saved, check_finite=False)


def header(**entries):
    text = json.dumps({"__metadata__": {"nnx": '{"format": 2}'}, **entries}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little"),
        (10**8 + 1).to_bytes(8, "little") + b"{}",
        header(a={"dtype": "F32", "shape": [2**60, 2**60], "data_offsets": [0, 4]}) + b"0000",
        header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}) + b"0000",
        header(a={"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}) + b"0000",
        header(a={"dtype": "BF17", "shape": [1], "data_offsets": [0, 4]}) + b"0000",
        header(a={"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}) + b"0000",
        header(a=[]),
        header(a={"dtype": "F32", "shape": [1] * 10**5, "data_offsets": [0, 4]}) + b"0000",
        header(**{key: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]} for key in "ab"}) + b"0000",
        (10**6).to_bytes(8, "little") + b"[" * 10**6,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xff",
    ],
)  # fmt: skip
def test_what_a_header_says(tmp_path, content):
    path = tmp_path / "net.nnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*net\.nnx is not a whole safetensors file[^\n]*$"):
        nnx.load(path)


def test_a_file_of_format_1_is_read(saved):
    arrays, description = files.read(saved)
    saved.write_bytes(save(arrays, metadata={"nnx": json.dumps({**description, "format": 1})}))
    assert nnx.load(saved).get_weights()[0].shape == (2, 2)


def test_what_could_not_be_read_again_is_not_written(saved, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_HEADER", 4000)
    model, old = nnx.load(saved), saved.read_bytes()
    model.network.layers[0].kernel_initializer = nnx.initializers.Constant([0.5] * 1000)
    with pytest.raises(ValueError, match=r"cannot save to .*net.nnx: names, shapes and settings take"):
        model.save(saved)
    assert saved.read_bytes() == old


def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    """A limit on the size of files, as the system enforces it: writing fails in the middle."""
    old = saved.read_bytes()
    program = f"""
import resource, signal, nnx
model = nnx.load({str(saved)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    model.save({str(saved)!r})
except OSError as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "OSError\n"
    assert saved.read_bytes() == old
    assert os.listdir(tmp_path) == ["net.nnx"]


@pytest.mark.parametrize("make", [nnx.Sequential, nnx.Model])
def test_memory_of_a_description_is_not_taken(tmp_path, make):
    """Units that ask for 320 MB and more: that is seen before anything is made."""
    chain = [layers.Dense(2, input_shape=(2,)), layers.BatchNormalization()]
    model = make(chain if make is nnx.Sequential else layers.Parallel(chain), seed=0)
    model.build((2,))
    path = tmp_path / "net.nnx"
    model.save(path)
    arrays, description = files.read(path)
    text = json.dumps(description).replace('"units": 2', '"units": 20000000')
    path.write_bytes(save(arrays, metadata={"nnx": text, "checksum": files.checksum(text, arrays)}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="was asked for where there are"):
        nnx.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
