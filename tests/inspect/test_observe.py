"""What `Context.observer` sees of a pass, and what an `Observer` keeps of it."""

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.inspect.observe import Observer
from nnx.layers.base import run


def network():
    return layers.Chain(
        [layers.Residual([layers.Dense(4, "relu")]), layers.BatchNormalization(), layers.Dense(2)]
    )


def passed(network, in_shape, observer=None, x=None, backend="numpy"):
    """Return output and pullback of a training pass of a network on 3 samples."""
    params, _ = network.init(np.random.default_rng(0), in_shape)
    ctx = nnx.Context(backend, training=True, state=network.init_state(in_shape))
    ctx.observer = observer
    x = np.random.default_rng(1).normal(size=(3, *in_shape)) if x is None else x
    return run(network, ctx, params, x)


def test_the_observer_sees_each_layer_once_and_may_stand_in_for_it():
    seen = []

    def observer(layer, ctx, compute):
        seen.append((ctx.path, type(layer)))
        return compute()

    y, _ = passed(network(), (4,), observer)
    assert seen == [
        ("", layers.Chain),
        ("/residual", layers.Residual),
        ("/residual/chain", layers.Chain),
        ("/residual/chain/dense", layers.Dense),
        ("/batch_normalization", layers.BatchNormalization),
        ("/dense", layers.Dense),
    ]
    assert np.array_equal(y, passed(network(), (4,))[0])
    assert passed(network(), (4,), lambda layer, ctx, compute: ("no layer ran", None)) == (
        "no layer ran",
        None,
    )


def test_layers_that_a_layer_makes_in_its_pass_are_seen():
    observer = Observer(nnx.as_backend("numpy"))
    passed(layers.TransformerBlock(2, 8), (5, 4), observer)
    feed_forward = "feed_forward/chain/feed_forward"
    assert {f"{feed_forward}/inner", f"{feed_forward}/outer"} <= observer.layers.keys()
    assert ("forward", f"{feed_forward}/inner", "output") in observer.records


def test_an_observer_keeps_outputs_and_gradients_and_changes_no_number():
    observer = Observer(nnx.as_backend("numpy"))
    (y, pullback), (plain, plain_pullback) = (passed(network(), (4,), each) for each in (observer, None))
    (dx, grads), (plain_dx, plain_grads) = (pull(np.ones_like(plain)) for pull in (pullback, plain_pullback))
    assert np.array_equal(y, plain)
    assert np.array_equal(dx, plain_dx)
    kept = observer.records
    assert np.array_equal(kept["forward", "dense", "output"][""], y)
    assert np.array_equal(kept["backward", "dense", "dL/dweights"]["kernel"], grads["dense"]["kernel"])
    inner = kept["backward", "residual/chain/dense", "dL/dweights"]
    assert np.array_equal(inner["kernel"], plain_grads["residual"]["chain"]["dense"]["kernel"])
    assert ("backward", "residual", "dL/dweights") not in kept  # they are those of the layers inside


def test_an_observer_notes_the_layer_that_fails():
    class Fails(layers.Layer):
        def forward(self, ctx, params, x):
            raise ValueError("it fails")

    observer = Observer(nnx.as_backend("numpy"))
    with pytest.raises(ValueError, match="it fails"):
        passed(layers.Chain([layers.Dense(2), Fails()]), (4,), observer)
    assert observer.failed == ("forward", "fails")


@pytest.mark.parametrize("outputs", [1, 2])
def test_losses_are_observed(outputs):
    heads = {name: layers.Dense(1) for name in "ab"[:outputs]}
    model = nnx.Sequential([layers.Outputs(heads) if outputs > 1 else heads["a"]], seed=0, backend="numpy")
    model.compile("sgd", dict.fromkeys(heads, "mse") if outputs > 1 else "mse")
    model.build((3,))
    observer, runner = Observer(model.backend), model.engine
    y = np.ones((4, 1), dtype=np.float32)
    samples = model.check_batch((np.ones((4, 3)), dict.fromkeys(heads, y) if outputs > 1 else y))
    with model.backend.scope("float32"):
        row = {name: values[0] for name, values in runner.scalars(0, 1).items()}
        carry = model.carry
        runner.steps.gradients(carry["params"], carry["state"], runner.place(samples), row, None, observer)
    losses = [
        arrays[""].shape
        for (stage, name, _), arrays in observer.records.items()
        if (stage, name) == ("forward", "loss")
    ]
    assert losses == [(4,)] * outputs
