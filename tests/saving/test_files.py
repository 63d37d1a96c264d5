"""Files that nnx writes: what is in their place stays what it is, and nobody else's are touched."""

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import nnx
from nnx import callbacks, layers
from nnx.saving import files, locks

X, Y = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)


def compiled(**settings):
    model = nnx.Sequential([layers.Dense(4), layers.Dense(1)], **{"seed": 0, **settings})
    model.compile("sgd", "mse")
    return model


def built():
    model = compiled()
    model.build((3,))
    return model


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


WRITERS = {
    "save": lambda path: built().save(path),
    "save_weights": lambda path: built().save_weights(path),
    "to_numpy_function": lambda path: built().to_numpy_function(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_permissions_links_and_the_umask(umask, tmp_path, name):
    path, write = tmp_path / "net.py", WRITERS[name]
    write(path)
    assert mode(path) == 0o640
    for kept in (0o600, 0o664):
        path.chmod(kept)
        write(path)
        assert mode(path) == kept
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link, target = folder / "link.py", tmp_path / "target.py"
    link.symlink_to(Path("..") / "target.py")
    for _ in range(2):  # of a target that is not there, and of one that is
        write(link)
        assert link.is_symlink()
        assert target.is_file()
    assert not [p for p in (*tmp_path.iterdir(), *folder.iterdir()) if p.name.startswith(".")]


def test_only_files_are_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(os.devnull, tmp_path / "null")
    for path in (tmp_path / "pipe", tmp_path / "null", Path(os.devnull)):
        with pytest.raises(OSError, match=rf"cannot save to {path}: it is a device, pipe or socket"):
            built().save(path)
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        built().save(tmp_path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_the_umask_is_never_changed(monkeypatch, tmp_path):
    """It is that of the whole process: another thread would make files that all may write."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is changed"))
    built().save(tmp_path / "net.nnx")


def test_a_name_as_long_as_the_system_takes(tmp_path):
    path = tmp_path / ("n" * 251 + ".nnx")
    built().save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# Run folders


def checkpoint(folder):
    return callbacks.ModelCheckpoint(folder / "best.nnx", monitor="loss", save_state=True)


def run(folder, **settings):
    model = compiled()
    model.fit(X, Y, verbose=0, **{"epochs": 2, "callbacks": [checkpoint(folder)], **settings})
    return model


def partials(folder):
    return sorted(path.name for path in folder.glob(".*"))


def test_only_what_is_abandoned_is_removed(tmp_path):
    foreign = [".report.pdf.partial", f".net.nnx{files.PARTIAL}", f".net.nnx.0123{files.PARTIAL}"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"not ours")
    abandoned = tmp_path / f".net.nnx.0123456789abcdef{files.PARTIAL}"
    being_written = tmp_path / f".net.nnx.fedcba9876543210{files.PARTIAL}"
    abandoned.write_bytes(b"half")
    with being_written.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run(tmp_path, resume=tmp_path)
        assert partials(tmp_path) == sorted([*foreign, being_written.name])
    run(tmp_path, resume=tmp_path)
    assert partials(tmp_path) == sorted(foreign)


def test_a_file_that_is_being_written_is_left_alone(monkeypatch, tmp_path):
    flush, runs = os.fsync, []

    def fsync(handle):
        flush(handle)
        if not runs:
            runs.append(1)
            run(tmp_path, resume=tmp_path)

    monkeypatch.setattr(files.os, "fsync", fsync)
    built().save(tmp_path / "net.nnx")
    assert runs
    nnx.load(tmp_path / "net.nnx")


HOLDER = """
import sys, numpy as np, nnx
class Stay(nnx.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            print("here", flush=True)
            sys.stdin.read()
model = nnx.Sequential([nnx.layers.Dense(4), nnx.layers.Dense(1)], seed=0)
model.compile("sgd", "mse")
saving = nnx.callbacks.ModelCheckpoint(sys.argv[1] + "/best.nnx", monitor="loss", save_state=True)
model.fit(np.ones((8, 3), "f"), np.ones((8, 1), "f"), epochs=9, verbose=0, callbacks=[saving, Stay()])
"""


def test_a_second_process_is_kept_out_until_the_first_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "here\n"
        before = (tmp_path / "state.nnx").read_bytes()
        message = rf"{tmp_path} is the folder of a training .* process {holder.pid} on .* another folder"
        for settings in ({}, {"resume": tmp_path}):
            with pytest.raises(RuntimeError, match=message):
                run(tmp_path, **settings)
        assert (tmp_path / "state.nnx").read_bytes() == before
        holder.send_signal(signal.SIGKILL)
    assert run(tmp_path, resume=tmp_path).step == 2
    assert not (tmp_path / locks.NAME).exists()


def test_a_second_thread_is_kept_out_too(tmp_path):
    found = []

    def other():
        with contextlib.suppress(ValueError):
            try:
                run(tmp_path)
            except RuntimeError as error:
                found.append(str(error))

    def beside(*_):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    run(tmp_path, callbacks=[checkpoint(tmp_path), callbacks.LambdaCallback(on_epoch_end=beside)])
    assert len(found) == 2
    assert "under way in another thread of this process" in found[0]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of JAX: the child uses no thread
def test_a_forked_child_does_not_keep_the_folder(tmp_path):
    """A process of a pool may outlive the training that made it."""
    with locks.run_folder(tmp_path):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    with locks.run_folder(tmp_path):
        pass
    os.close(handle)
    os.close(write)
    os.waitpid(child, 0)


def test_where_nothing_can_be_locked_it_is_said(monkeypatch, tmp_path):
    def refuse(handle, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .Function not implemented.: see to it"):
        run(tmp_path)


# States


def rewritten(folder, edit):
    arrays, description = files.read(folder / "state.nnx")
    description = json.loads(json.dumps(description))
    edit(description["run"])
    del description["format"]
    files.write(folder / "state.nnx", arrays, description)


def stopping(**settings):
    return callbacks.EarlyStopping("loss", **{"patience": 5, "restore_best_weights": True, **settings})


WRONG = {
    "input_shape": [[10**8], [0], "x", None, {"a": [3]}, [-1]],
    "step": [10**40, -1, "x", None, 1.5, True, 0],
    "seed": [None, -1, "x", 1.5],
    "epochs": ["x", 10**9, 0, None, []],
    "learning_rate": ["x", float("inf"), float("nan"), -1, [], None],
    "stopped": ["x", 1, None],
    "callbacks": [[], None, {}, "x"],
    "settings": [[], None],
    "facts": [[], None, {}],
}


@pytest.mark.parametrize("key", WRONG)
def test_each_field_of_a_state(tmp_path, key):
    given = {"resume": tmp_path, "callbacks": [checkpoint(tmp_path), stopping()]}
    run(tmp_path, callbacks=given["callbacks"])
    whole = (tmp_path / "state.nnx").read_bytes()
    for value in WRONG[key]:
        (tmp_path / "state.nnx").write_bytes(whole)
        rewritten(tmp_path, lambda state, value=value: state.update({key: value}))
        with pytest.raises(ValueError, match=r"^[^\n]*state\.nnx[^\n]*"):
            run(tmp_path, epochs=4, **given)
        (tmp_path / "state.nnx").write_bytes(whole)
        rewritten(tmp_path, lambda state: state.pop(key))
        with pytest.raises(ValueError, match=r"^[^\n]*state\.nnx[^\n]*"):
            run(tmp_path, epochs=4, **given)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("EarlyStopping", "wait", "x"),
        ("EarlyStopping", "wait", -1),
        ("EarlyStopping", "best", float("nan")),
        ("EarlyStopping", "best", True),
        ("EarlyStopping", "best_weights", [1]),
        ("ModelCheckpoint", "best", "x"),
        ("History", "epoch", [0, "x"]),
        ("History", "epoch", [0]),
        ("History", "history", {"loss": 3}),
        ("History", "history", {"loss": ["x", 1]}),
        ("CSVLogger", "end", -5),
        ("CSVLogger", "columns", "loss"),
    ],
)
def test_what_callbacks_kept(tmp_path, name, key, value):
    given = [checkpoint(tmp_path), stopping(), callbacks.CSVLogger(tmp_path / "log.csv")]
    run(tmp_path, callbacks=given)
    rewritten(tmp_path, lambda state: state["callbacks"][name].update({key: value}))
    with pytest.raises(ValueError, match=r"state\.nnx|columns and end of .*log.csv are damaged"):
        run(tmp_path, epochs=4, callbacks=given, resume=tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patience": 6}, r"another patience of EarlyStopping \(5, now 6\)"),
        ({"min_delta": 0.5}, r"another min_delta of EarlyStopping \(0.0, now 0.5\)"),
        ({"restore_best_weights": False}, "another restore_best_weights of EarlyStopping"),
    ],
)
def test_other_settings_of_a_callback(tmp_path, changed, message):
    run(tmp_path, callbacks=[checkpoint(tmp_path), stopping()])
    with pytest.raises(ValueError, match=message):
        run(tmp_path, callbacks=[checkpoint(tmp_path), stopping(**changed)], resume=tmp_path)


def test_another_seed_or_a_schedule_of_rates_more(tmp_path):
    run(tmp_path)
    model = compiled(seed=1)
    with pytest.raises(ValueError, match=r"of a run with another seed \(0, now 1\)"):
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[checkpoint(tmp_path)], resume=tmp_path)
    rates = callbacks.LearningRateScheduler(lambda epoch: 0.1)
    with pytest.raises(ValueError, match="other callbacks: they differ in LearningRateScheduler"):
        run(tmp_path, callbacks=[checkpoint(tmp_path), rates], resume=tmp_path)


def test_other_settings_of_a_layer_that_is_not_registered(tmp_path):
    class Times(layers.Layer):
        def __init__(self, factor, **settings):
            super().__init__(**settings)
            self.factor = factor

        def forward(self, ctx, params, x):
            return x * self.factor, lambda dy: (dy * self.factor, {})

    def fit(factor, resume=None):
        model = nnx.Sequential([Times(factor), layers.Dense(1)], seed=0)
        model.compile("sgd", "mse")
        saving = callbacks.ModelCheckpoint(
            tmp_path / "net.nnx", monitor="loss", save_weights_only=True, save_state=True
        )
        model.fit(X, Y, verbose=0, callbacks=[saving], resume=resume)

    fit(1.0)
    fit(1.0, tmp_path)
    with pytest.raises(ValueError, match="of a run with another network"):
        fit(2.0, tmp_path)
