"""Training shared by several processes gives what one process gives. Here the ranks are threads,
each with a backend of its own, or processes that meet on the loopback network.
"""

import importlib
import inspect
import json
import multiprocessing
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from nnx.backends.shared import sockets
from nnx.backends.shared.sockets import SocketCommunicator
from thread_ranks import on_ranks

import nnx
from nnx import callbacks, layers
from nnx.data import lazy_arrays, out_of_core
from nnx.distributed.launch import free_port
from nnx.distributed.ranks import DistributedError
from nnx.training.runner import StepRunner

RNG = np.random.default_rng(0)
X = RNG.standard_normal((103, 6))
Y = RNG.integers(0, 3, 103)


def network(*inner, seed=0, dtype="float64"):
    return nnx.Sequential(
        [layers.Dense(16, "relu", kernel_regularizer="l2"), *inner, layers.Dense(3, "softmax")],
        seed=seed,
        dtype=dtype,
    )


def trained(model, optimizer="adam", x=X, y=Y, **settings):
    model.compile(nnx.optimizers.get(optimizer), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, **{"batch_size": 20, "epochs": 3, "verbose": 0} | settings)
    return model


def assert_same(found, expected, tolerance=1e-10):
    """Every rank has the numbers and weights of one process, and exactly those of the other ranks."""
    assert found[0].history.history.keys() == expected.history.history.keys()
    for model in found:
        for name, values in expected.history.history.items():
            np.testing.assert_allclose(model.history.history[name], values, rtol=tolerance, err_msg=name)
        for mine, one, first in zip(
            model.get_weights(), expected.get_weights(), found[0].get_weights(), strict=True
        ):
            np.testing.assert_allclose(mine, one, rtol=tolerance, atol=tolerance)
            np.testing.assert_array_equal(mine, first)
        assert model.history.history == found[0].history.history


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def replays(request, monkeypatch):
    monkeypatch.setenv("NNX_REPLAY", "1" if request.param else "0")


# The same training


@pytest.mark.usefixtures("replays")
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_train_as_one_process_does(size):
    """Dropout included; 82 samples leave a last batch of two, which is none for the third rank."""
    run = lambda *_: trained(network(layers.Dropout(0.3)), validation_split=0.2)  # noqa: E731
    assert_same(on_ranks(size, run), run())


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": nnx.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.1)},
        {"optimizer": nnx.optimizers.Adam(0.01, global_clipnorm=0.1)},
        {"optimizer": nnx.optimizers.Adam(nnx.schedules.ExponentialDecay(0.1, 3, 0.5), clipvalue=0.01)},
        {"class_weight": {0: 3.0}, "sample_weight": np.linspace(0, 2, 103)},
        {"batch_size": 200, "validation_data": (X[:1], Y[:1])},  # one of validation for two ranks
        {"batch_size": 3, "shuffle": False},
        {"x": [(X[:50], Y[:50]), (X[50:], Y[50:]), (X[:1], Y[:1])], "y": None,
         "validation_data": [(X[:9], Y[:9]), (X[9:10], Y[9:10])]},
    ],
    ids=["clipnorm", "global_clipnorm", "schedule", "weights", "one batch", "order", "stream"],
)  # fmt: skip
def test_settings(size, settings):
    run = lambda *_: trained(network(), **settings)  # noqa: E731
    assert_same(on_ranks(size, run), run())


def test_a_file_larger_than_memory(tmp_path, monkeypatch):
    """Each rank reads whole windows, and agrees with the others by a few samples."""
    monkeypatch.setattr(lazy_arrays, "READ_WHOLE", 0)
    monkeypatch.setattr(out_of_core, "WINDOW_BYTES", 30 * X[0].nbytes)
    np.save(tmp_path / "x.npy", X)
    files = [np.load(tmp_path / "x.npy", mmap_mode="r") for _ in range(4)]
    run = lambda *_: trained(network(), x=files.pop(), validation_split=0.2)  # noqa: E731
    assert_same(on_ranks(3, run), run())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 0.02)])
def test_precision(dtype, tolerance):
    run = lambda *_: trained(network(dtype=dtype), epochs=2)  # noqa: E731
    assert_same(on_ranks(2, run), run(), tolerance)


def test_train_on_batch_and_a_second_fit():
    def run(*_):
        model = trained(network(layers.Dropout(0.3)), epochs=1)
        logs = [model.train_on_batch(X[i : i + 7], Y[i : i + 7]) for i in range(0, 21, 7)]
        model.fit(X, Y, epochs=1, verbose=0)
        return model, logs

    found, expected = on_ranks(3, run), run()
    assert_same([model for model, _ in found], expected[0])
    for _, logs in found:
        np.testing.assert_allclose(logs, expected[1], rtol=1e-10)


def test_train_on_batch_alone_starts_from_the_weights_of_rank_0():
    def run(communicator):
        model = network(seed=communicator.rank)
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.train_on_batch(X, Y)
        return model.get_weights()

    first, second = on_ranks(2, run)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("replays")
def test_batch_normalization_has_the_same_moving_averages_on_all_ranks():
    run = lambda *_: trained(network(layers.BatchNormalization()), batch_size=19, validation_split=0.1)  # noqa: E731
    found, one = on_ranks(2, run), run()
    for mine, other in zip(found[0].get_weights(), found[1].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert found[0].history.history == found[1].history.history
    # The moments are those of each part, so it is not the training of one process, but near it.
    np.testing.assert_allclose(found[0].history.history["loss"], one.history.history["loss"], rtol=0.1)
    means = [m.backend.to_numpy(nnx.tree.leaves(m.state)[0]) for m in (found[0], one)]
    assert np.abs(means[0]).max() > 0.01
    np.testing.assert_allclose(*means, atol=0.02)


def test_without_a_seed_all_ranks_take_that_of_rank_0():
    def run(communicator):
        return trained(network(layers.Dropout(0.5), seed=None), epochs=2)

    found = on_ranks(2, run)
    expected = trained(network(layers.Dropout(0.5), seed=found[0].seed), epochs=2)
    assert_same(found, expected)


def test_optimizer_and_step_go_on():
    """Rank 1 forgets its optimizer's slots: it is given those of rank 0."""

    def run(communicator=None):
        model = trained(network(layers.Dropout(0.3)), epochs=1)
        if communicator is not None and communicator.rank == 1:
            zeros = lambda slot: nnx.tree.map(lambda a: np.zeros(a.shape), slot)  # noqa: E731
            model.set_slots([zeros(slot) for slot in model.slots.values()])
        model.fit(X, Y, epochs=2, verbose=0)
        return model

    assert_same(on_ranks(2, run), run())


# What it costs


@pytest.mark.usefixtures("replays")
def test_one_all_reduce_a_step_and_one_an_epoch():
    def run(communicator):
        model = network(layers.BatchNormalization())
        model.build((6,))
        communicator.reduced.clear()
        trained(model, epochs=3, validation_split=0.2)
        return communicator.reduced, model.count_params()

    for reduced, weights in on_ranks(2, run):
        epoch = [weights] * 5 + [3, 3]  # 82 samples; loss, right answers and their number, twice
        assert reduced[1:] == epoch * 3  # the first: whether the ranks agree
        assert reduced[0] < 10


def test_the_all_reduce_is_part_of_the_compiled_step():
    def run(communicator):
        programs = StepRunner(trained(network())).steps.train.programs
        return [program.loop.__doc__ for program in programs]

    for texts in on_ranks(2, run):
        assert len(texts) == 2  # full batches and the last
        assert all(text.count("all_reduce_") == 1 for text in texts)
        assert not any(text.count("concatenate_") for text in texts)  # parts are written where they belong


def test_one_process_is_untouched():
    model = trained(network())
    assert StepRunner(model).communicator is None
    assert "share" not in StepRunner(model).scalars(0, 1, StepRunner(model).shard(20))
    assert not any("all_reduce" in p.loop.__doc__ for p in StepRunner(model).steps.train.programs)


# Callbacks


def test_callbacks_decide_alike_and_write_once(tmp_path, capsys):
    def run(communicator):
        folder = tmp_path / str(communicator.rank)
        folder.mkdir()
        seen = []
        hooks = [
            callbacks.EarlyStopping("val_loss", patience=4, restore_best_weights=True),
            callbacks.ReduceLROnPlateau("val_loss", patience=0, factor=0.5),
            callbacks.ModelCheckpoint(folder / "{epoch}.nnx"),
            callbacks.CSVLogger(folder / "log.csv"),
            callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["val_loss"])),
        ]
        model = network()
        settings = {"epochs": 30, "validation_split": 0.3, "callbacks": hooks, "verbose": 2}
        return trained(model, nnx.optimizers.Adam(0.1), **settings), seen, model.optimizer.learning_rate

    (first, *logs), (second, *others) = on_ranks(2, run)
    assert logs == others
    assert 2 < len(logs[0]) < 30
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    names = {path.name for path in (tmp_path / "0").iterdir()}
    assert names == {"log.csv", *(f"{epoch + 1}.nnx" for epoch in range(len(logs[0])))}
    assert list((tmp_path / "1").iterdir()) == []
    assert capsys.readouterr().out.count("epoch  1/30") == 1
    assert (tmp_path / "0" / "log.csv").read_text().count("\n") == len(logs[0]) + 1


def test_a_training_that_was_cut_off_goes_on_on_all_ranks(tmp_path):
    """Rank 0 wrote the state; each rank reads it, and its callbacks get back what they counted."""

    class Cut(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 4:
                raise RuntimeError("the power fails")

    def training(folder, *more, **settings):
        hooks = [
            callbacks.ModelCheckpoint(folder / "best.nnx", save_best_only=True, save_state=True),
            callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True),
            callbacks.ReduceLROnPlateau("val_loss", patience=0, factor=0.5),
            *more,
        ]
        settings = {"epochs": 9, "validation_split": 0.3, "callbacks": hooks, **settings}
        return trained(network(layers.Dropout(0.3)), nnx.optimizers.Adam(0.03), **settings)

    whole = on_ranks(2, lambda _: training(tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="the power fails"):
        on_ranks(2, lambda _: training(tmp_path / "cut", Cut()))
    again = on_ranks(2, lambda _: training(tmp_path / "cut", resume=tmp_path / "cut"))
    for one, other in zip(whole, again, strict=True):
        assert one.history.history == other.history.history
        assert one.optimizer.learning_rate == other.optimizer.learning_rate
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


class OnFirst(callbacks.Callback):
    """Looks at the loss at each batch, on rank 0 alone."""

    first_rank_only = True

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def test_batch_hooks_on_the_first_rank_see_the_loss_of_all():
    def run(*_):
        hook = OnFirst()
        trained(network(), epochs=2, callbacks=[hook])
        return hook.losses

    found, expected = on_ranks(2, run), run()
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)
    assert found[1] == []


def test_evaluate_and_predict_need_no_other_rank():
    def run(communicator):
        model = trained(network(), epochs=1)
        return model.evaluate(X, Y, verbose=0) if communicator.rank == 0 else model.predict(X[:3])

    found = on_ranks(2, run)
    expected = trained(network(), epochs=1)
    np.testing.assert_allclose(found[0], expected.evaluate(X, Y, verbose=0), rtol=1e-10)
    np.testing.assert_allclose(found[1], expected.predict(X[:3]), rtol=1e-10)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": [X, X + 1e-3]}, "X of 1 of 2 processes differs from that of rank 0: .* .give a seed"),
        ({"y": [Y, (Y + 1) % 3]}, "y of 1 of 2 processes differs"),
        ({"x": [X, X[:-1]], "y": [Y, Y[:-1]]}, "number of samples of 1 of 2 processes differs"),
        ({"batch_size": [20, 21]}, "batch_size of 1 of 2 processes differs"),
        ({"epochs": [3, 4]}, "epochs of 1 of 2 processes differs"),
    ],
)
def test_ranks_that_disagree_say_so(settings, message):
    errors = []

    def run(communicator):
        with pytest.raises(DistributedError, match=message) as error:
            trained(network(), **{name: values[communicator.rank] for name, values in settings.items()})
        errors.append(error)

    on_ranks(2, run)
    assert len(errors) == 2


def test_different_networks():
    with pytest.raises(DistributedError, match="number of weights of 2 of 3 processes differs"):
        on_ranks(3, lambda c: trained(network(*[layers.Dense(4)] * bool(c.rank))))


def test_a_batch_too_small_to_share():
    message = "batch_size=2 is smaller than the 3 processes that share each batch: raise it, or launch fewer"
    with pytest.raises(ValueError, match=message):
        on_ranks(3, lambda _: trained(network(), batch_size=2))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 do not say which of how many"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x and WORLD_SIZE=2 do not say"),
        ({"RANK": "1"}, "RANK=1 and WORLD_SIZE=1 do not say"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_PORT='' is no port"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "NNX_KEY is not set"),
    ],
)
def test_numpy_in_an_environment_that_no_launcher_made(variables, message, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "NNX_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=message):
        trained(network())


def test_jax_refuses(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = nnx.Sequential([layers.Dense(3, "softmax")], backend="jax")
    with pytest.raises(nnx.BackendError, match="the jax backend does not train on several processes: run it"):
        trained(model)


# Processes

PROGRAM = """
import json, os, sys, time
import numpy as np
import nnx

rank = nnx.distributed.rank()
data = np.load(sys.argv[1])
model = nnx.Sequential([nnx.layers.Dense(16, "relu"), nnx.layers.Dropout(0.3), nnx.layers.Dense(3, "softmax")],
                       seed=0 if "--seeded" in sys.argv else None, dtype="float64")
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

class Trouble(nnx.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if "--fail" in sys.argv and rank == 1:
            raise RuntimeError("the disk is full")
        if "--die" in sys.argv and rank == 1:
            os.kill(os.getpid(), 9)
        if "--wait" in sys.argv:
            print("waiting", flush=True)
            time.sleep(60)

print("hello from", rank, flush=True)
if f"--leave={rank}" in sys.argv:
    model.build((6,))
    model.predict(data["x"])
    sys.exit()
model.fit(data["x"], data["y"], batch_size=20, epochs=3, validation_split=0.2, verbose=0, callbacks=[Trouble()])
with open(f"{sys.argv[1]}.{rank}.json", "w") as file:
    json.dump({"history": model.history.history, "sum": float(sum(abs(w).sum() for w in model.get_weights()))}, file)
"""


@pytest.fixture
def command(tmp_path):
    """Return a function that gives the command line of a training in two processes."""
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    (tmp_path / "program.py").write_text(PROGRAM)
    program = [str(tmp_path / "program.py"), str(tmp_path / "data.npz")]
    return lambda *options: [sys.executable, "-m", "nnx", "launch", "--processes", "2", *program, *options]


def ended(command, **settings):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def test_launch_trains_as_one_process_does(command, tmp_path):
    done = ended(command("--seeded"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello from 0\n"  # what the others print is left out
    found = [json.loads((tmp_path / f"data.npz.{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    subprocess.run([sys.executable, *command("--seeded")[6:]], check=True, capture_output=True)
    expected = json.loads((tmp_path / "data.npz.0.json").read_text())
    assert found[0]["sum"] == pytest.approx(expected["sum"], rel=1e-10)
    for name, values in expected["history"].items():
        assert found[0]["history"][name] == pytest.approx(values, rel=1e-10)


def test_launch_without_a_seed(command, tmp_path):
    assert ended(command()).returncode == 0
    first, second = ((tmp_path / f"data.npz.{rank}.json").read_text() for rank in (0, 1))
    assert first == second


@pytest.mark.parametrize(
    ("option", "message"),
    [("--fail", "[rank 1] RuntimeError: the disk is full"), ("--die", "rank 1 ended with signal SIGKILL")],
)
def test_one_that_fails_ends_all(command, option, message):
    start = time.monotonic()
    done = ended(command(option))
    assert time.monotonic() - start < 60
    assert done.returncode in (1, 137)
    # Which of the two is seen to end first, that which failed or that which lost it, is chance.
    assert message in done.stderr or "rank 0 lost another process that it trains with" in done.stderr
    assert "python -m nnx launch: rank " in done.stderr


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGINT, "interrupted: all processes are ended"),
        (signal.SIGTERM, "ended by SIGTERM: all processes are ended"),
        (signal.SIGHUP, "ended by SIGHUP: all processes are ended"),
        (signal.SIGKILL, None),
    ],
)
def test_a_launcher_that_ends_ends_all(command, number, message):
    process = subprocess.Popen(command("--wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "hello from 0\n"
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)  # which ends when no process has its output any more
    if message:
        assert process.returncode == 128 + number
        assert errors.splitlines()[-1] == f"python -m nnx launch: {message}"


def test_a_launcher_that_is_to_survive_its_terminal_does(command):
    process = subprocess.Popen(["nohup", *command("--wait")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.stdout.readline() != b"waiting\n":
        pass
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert b"ended by SIGTERM" in errors


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_ends_before_it_trains_ends_all(command, rank):
    done = ended(command(f"--leave={rank}"))
    assert done.returncode == 1
    assert done.stderr == (
        f"python -m nnx launch: rank {rank} ended with exit code 0 before it trained, and rank {1 - rank} waited "
        f"for it to train together: the others are ended. All ranks must call fit\n"
    )


def test_ranks_need_not_train(command):
    assert ended(command("--leave=0", "--leave=1")).returncode == 0


def test_launch_mistakes(command, tmp_path):
    launch = [sys.executable, "-m", "nnx", "launch"]
    done = ended([*launch, "--gpus", "2", "nowhere.py"], cwd=tmp_path)
    assert done.returncode == 2
    assert f"launch: error: there is no script 'nowhere.py' in {tmp_path}\n" in done.stderr
    done = ended([*launch, "--gpus", "0", "program.py"], cwd=tmp_path)
    assert "expected a whole number not below 1, got '0'" in done.stderr
    done = ended([*launch, "program.py"], cwd=tmp_path)
    assert "one of the arguments --gpus --processes is required" in done.stderr


@pytest.mark.usefixtures("meeting")
def test_a_process_of_another_launch_is_turned_away():
    first, other = SocketCommunicator(0, 2), SocketCommunicator(1, 3)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(other.broadcast, np.zeros(3))
        with pytest.raises(DistributedError, match="rank 1 of 3 came to meet rank 0 of 2"):
            first.broadcast(np.zeros(3))
        with pytest.raises(DistributedError, match="rank 1 lost another process"):
            lost.result(20)


@pytest.fixture
def meeting(monkeypatch):
    """Return the address at which the ranks of this test meet."""
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("NNX_KEY", "00" * 32)
    return nnx.distributed.ranks.address()


def test_strangers_do_not_keep_ranks_from_meeting(meeting, monkeypatch):
    """One is silent, one leaves at once, one talks of something else and one has another key."""
    first, second = SocketCommunicator(0, 2), SocketCommunicator(1, 2)
    monkeypatch.setenv("NNX_KEY", "11" * 32)
    other = SocketCommunicator(1, 2)
    arrays = [np.ones(3), np.full(3, 2.0)]
    with ThreadPoolExecutor(2) as pool:
        done = pool.submit(first.all_reduce, arrays[0])
        silent = connected(meeting)
        connected(meeting).close()
        with connected(meeting) as talker:
            talker.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(DistributedError, match="another program than rank 0 listens at "):
            other.all_reduce(np.zeros(3))
        second.all_reduce(arrays[1])
        done.result(20)
    silent.close()
    assert [array.tolist() for array in arrays] == [[3.0] * 3] * 2


def connected(address):
    """Return a connection to what will listen at this address."""
    while True:
        try:
            return socket.create_connection(address, 20)
        except ConnectionRefusedError:
            time.sleep(0.01)


def test_ranks_that_do_not_come_are_named(meeting, monkeypatch):
    monkeypatch.setattr(sockets, "SECONDS_TO_MEET", 0.2)
    with pytest.raises(DistributedError, match="rank 1, 2 did not come to meet rank 0 within 0 s"):
        SocketCommunicator(0, 3).broadcast(np.zeros(3))
    with pytest.raises(DistributedError, match=r"rank 0 did not come to .* within 0 s"):
        SocketCommunicator(1, 3).broadcast(np.zeros(3))
    with socket.create_server(meeting):
        with pytest.raises(DistributedError, match=r"rank 0 cannot listen at .*in use.*start again"):
            SocketCommunicator(0, 3).broadcast(np.zeros(3))
        monkeypatch.setattr(sockets, "SECONDS_TO_GREET", 1.0)  # it accepts and says nothing
        with pytest.raises(DistributedError, match=r"rank 0 did not come to .* within 0 s"):
            SocketCommunicator(1, 3).broadcast(np.zeros(3))


# CuPy: NCCL itself needs two GPUs, see test_gpu


@pytest.fixture
def cupy(monkeypatch):
    if nnx.get_backend().name != "cupy":
        pytest.skip("for CuPy: pytest --cupy")
    monkeypatch.setenv("MASTER_PORT", "12345")
    return nnx.get_backend().cupy


def nccl():
    """Return CuPy's module, which warns where the library is missing."""
    with warnings.catch_warnings(action="ignore"):
        return importlib.import_module("cupy.cuda.nccl")


class Group:
    """What `init_process_group` returns, as far as it is used."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_nccl_is_called_in_place_on_the_arrays_themselves(cupy, monkeypatch):
    library = nccl()
    import cupyx.distributed

    monkeypatch.setattr(library, "available", True)

    start = inspect.signature(cupyx.distributed.init_process_group)
    group, given = Group(), []

    def init_process_group(*arguments, **settings):
        given.append((start.bind(*arguments, **settings).arguments, multiprocessing.get_start_method()))
        return group

    monkeypatch.setattr(cupyx.distributed, "init_process_group", init_process_group)
    before = multiprocessing.get_start_method()
    communicator = nnx.get_backend().communicator(0, 2)
    assert (communicator.rank, communicator.size) == (0, 2)
    array = cupy.ones(3)
    communicator.all_reduce(array)
    communicator.broadcast(array)
    assert given == [({"n_devices": 2, "rank": 0, "host": "127.0.0.1", "port": 12345}, "fork")]
    assert multiprocessing.get_start_method() == before
    assert [name for name, *_ in group.calls] == ["stop", "all_reduce", "broadcast"]
    assert all(argument is array for _, *arguments in group.calls for argument in arguments)
    for name, *arguments in group.calls:
        inspect.signature(getattr(cupyx.distributed.NCCLBackend, name)).bind(group, *arguments)


def test_nccl_that_is_missing(cupy, monkeypatch):
    monkeypatch.setattr(nccl(), "available", False)
    with pytest.raises(nnx.BackendError, match="needs NCCL, which CuPy cannot load: pip install nvidia-nccl"):
        nnx.get_backend().communicator(0, 2)


MEETING = """
import multiprocessing, sys, time, warnings
warnings.simplefilter("ignore")
import cupyx.distributed
from cupy.cuda import nccl
from nnx.backends.cupy.nccl import NcclCommunicator

class Library:
    def __init__(self, size, unique_id, rank):
        print(size, unique_id.hex(), rank, flush=True)
        time.sleep(0.5 if rank == 0 else 0)  # as if it waited for the others
    def allReduce(self, *arguments): pass

nccl.available, nccl.NcclCommunicator, nccl.get_unique_id = True, Library, lambda: bytes(range(128, 256))
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2])
    start = time.monotonic()
    NcclCommunicator(int(sys.argv[1]), 2).group
    print(multiprocessing.get_start_method(), multiprocessing.active_children(), time.monotonic() - start < 20)
"""


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("method", ["fork", "forkserver"])  # the defaults of Python 3.13 and 3.14
def test_processes_meet_at_the_server_of_cupy(method, tmp_path, monkeypatch):
    """All of `cupyx.distributed` but the library itself; the last to come is rank 0."""
    (tmp_path / "meeting.py").write_text(MEETING)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    start = lambda rank: subprocess.Popen(  # noqa: E731
        [sys.executable, str(tmp_path / "meeting.py"), str(rank), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    second = start(1)
    time.sleep(2)
    first = start(0)
    for rank, process in enumerate((first, second)):
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert output.splitlines() == [f"2 {bytes(range(128, 256)).hex()} {rank}", f"{method} [] True"]


def test_fewer_gpus_than_processes(cupy, monkeypatch):
    count = cupy.cuda.runtime.getDeviceCount()
    monkeypatch.setenv("LOCAL_RANK", str(count))
    message = f"process {count} of those launched needs a GPU of its own, and there are {count}: launch with"
    with pytest.raises(nnx.BackendError, match=message):
        type(nnx.get_backend())()
