"""The estimators against scikit-learn's own: samples x width, float32, the default batch size.

All run in turns in one process, on the same data from the same starting weights, for as many epochs.
"""

import numpy as np
import pytest

from .measure import interleave

pytest.importorskip("sklearn")

FEATURES, CLASSES = 20, 3
# So many epochs that a fit takes long enough to be timed.
EPOCHS = {100: 200, 1000: 40, 10_000: 10, 60_000: 5}
WIDTHS = ((100,), (10,), (512, 512))


def problem(samples: int):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, FEATURES)).astype(np.float32)
    return x, (x @ rng.normal(size=(FEATURES, CLASSES))).argmax(axis=1)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("samples", EPOCHS)
def test_classifier(benchmark, samples, widths, backends):
    from sklearn.neural_network import MLPClassifier

    import nnx

    x, y = problem(samples)
    epochs = max(1, EPOCHS[samples] // (10 if len(widths) > 1 else 1))
    settings = {"max_iter": epochs, "n_iter_no_change": epochs + 1, "random_state": 0}
    benchmark.group = f"MLPClassifier{widths}, {samples} samples, {epochs} epochs"
    losses = {}

    def fit(name, estimator):
        losses.setdefault(name, estimator.fit(x, y).loss_)

    runs = {
        f"nnx, {backend.name}": lambda b=backend: fit(
            b.name, nnx.estimators.MLPClassifier(widths, **settings, backend=b)
        )
        for backend in backends
    }
    runs["scikit-learn"] = lambda: fit("scikit-learn", MLPClassifier(widths, **settings))
    measured = interleave(runs, budget=5.0, settle=True, benchmark=benchmark)
    assert list(losses.values()) == pytest.approx([losses["scikit-learn"]] * len(losses), rel=1e-3)
    benchmark.extra_info |= {
        "kind": "estimator",
        "samples": samples,
        "widths": list(widths),
        "epochs": epochs,
        "times": measured.table("scikit-learn"),
    }
