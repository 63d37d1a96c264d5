"""Metrics: what each says of itself, and numbers where they are hard to get right."""

import pytest

import nnx
from nnx.outputs import OutputMetric
from nnx.registry import REGISTRIES

ERRORS = {"mean_squared_error", "mean_absolute_error", "root_mean_squared_error"}


@pytest.mark.parametrize("name", REGISTRIES["metric"].names())
def test_each_metric_knows_whether_higher_is_better(name):
    assert nnx.metrics.get(name).higher_is_better is (name not in ERRORS)


def test_a_metric_of_ones_own_may_say_so_and_one_of_several_outputs_says_what_its_metric_does():
    class Skill(nnx.metrics.Metric):
        pass

    class RocAuc(nnx.metrics.AUC):
        pass

    assert Skill().higher_is_better is None
    assert RocAuc().higher_is_better is True
    for metric in (Skill(), nnx.metrics.AUC(), nnx.metrics.MeanSquaredError()):
        assert OutputMetric("kind", metric).higher_is_better is metric.higher_is_better
