"""Make the reference numbers of this folder from Keras (on JAX, in float64) and PyTorch.

Run by hand, in an environment of its own, when a case is added; the tests read only the files.
The numbers here were made with keras 3.15.1, jax 0.10.2 and torch 2.13.0:

    pip install keras==3.15.1 jax==0.10.2 torch==2.13.0
    python tests/reference/make_reference.py            # or with the names of files: losses metrics

Each case says in `source` where its numbers come from. PyTorch is used where it defines the same
thing: for optimizers as cases of their own, whose settings are those that make the two definitions
agree; for activations as a check of Keras's numbers while they are made.
"""

import inspect
import json
import os
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
STEPS = 20
KEPT_STEPS = (1, 2, 5, 20)


def main():
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["JAX_ENABLE_X64"] = "1"
    import keras
    from keras.src.backend.common import dtypes

    keras.config.set_floatx("float64")
    # Keras narrows float64 to float32 in some functions (tanh, cos): let it not.
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    makers = (
        optimizers,
        schedules,
        losses,
        activations,
        layers,
        sample_layers,
        sequences,
        convolution,
        attention,
        models,
        regularizers,
        metrics,
        defaults,
    )
    for make in makers:
        if not sys.argv[1:] or make.__name__ in sys.argv[1:]:
            write(make.__name__, make())


def write(name, sections):
    """Write {section: list of cases, or dict} as JSON, one entry a line."""
    parts = []
    for section, entries in sections.items():
        if isinstance(entries, dict):
            lines = [f"{json.dumps(key)}: {_dumps(value)}" for key, value in entries.items()]
            brackets = "{}"
        else:
            lines, brackets = [_dumps(entry) for entry in entries], "[]"
        parts.append(f'"{section}": {brackets[0]}\n' + ",\n".join(lines) + f"\n{brackets[1]}")
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _dumps(value):
    return json.dumps(value, default=_as_list, allow_nan=False)


def _as_list(array):
    array = np.asarray(array)
    if array.dtype.itemsize < 8:
        raise TypeError(f"reference numbers must be computed in float64, got {array.dtype}")
    return array.tolist()


# Optimizers

DECAYING = {
    "class_name": "ExponentialDecay",
    "config": {"initial_learning_rate": 0.01, "decay_steps": 4, "decay_rate": 0.7},
}

KERAS_OPTIMIZERS = [
    ("SGD", {"learning_rate": 0.01}),
    ("SGD", {"learning_rate": 0.01, "momentum": 0.9}),
    ("SGD", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"learning_rate": DECAYING, "momentum": 0.9}),
    ("SGD", {"learning_rate": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    ("SGD", {"learning_rate": 0.01, "clipnorm": 0.5}),
    ("SGD", {"learning_rate": 0.01, "clipvalue": 0.3}),
    ("SGD", {"learning_rate": 0.01, "global_clipnorm": 0.5}),
    ("SGD", {"learning_rate": 0.01, "global_clipnorm": 1e6}),
    ("RMSprop", {"learning_rate": 0.01}),
    ("RMSprop", {"learning_rate": 0.01, "rho": 0.8, "momentum": 0.5}),
    ("RMSprop", {"learning_rate": 0.01, "centered": True}),
    ("RMSprop", {"learning_rate": 0.01, "centered": True, "momentum": 0.5, "epsilon": 1e-3}),
    ("Adagrad", {"learning_rate": 0.1}),
    ("Adagrad", {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "weight_decay": 0.1}),
    ("Adadelta", {"learning_rate": 1.0}),
    ("Adadelta", {"learning_rate": 0.5, "rho": 0.8, "epsilon": 1e-3}),
    ("Adam", {}),
    ("Adam", {"learning_rate": 0.05}),
    ("Adam", {"learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-2}),
    ("Adam", {"learning_rate": 0.3, "beta_2": 0.6, "amsgrad": True}),
    ("Adam", {"learning_rate": DECAYING}),
    ("Adam", {"learning_rate": 0.05, "weight_decay": 0.1, "clipnorm": 0.5}),
    ("Adam", {"learning_rate": 0.05, "clipvalue": 0.2}),
    ("AdamW", {"learning_rate": 0.05}),
    ("AdamW", {"learning_rate": 0.05, "weight_decay": 0.1, "global_clipnorm": 0.5}),
    ("AdamW", {"learning_rate": 0.3, "beta_2": 0.6, "amsgrad": True}),
    ("Adamax", {"learning_rate": 0.05}),
    ("Adamax", {"learning_rate": 0.05, "beta_2": 0.7, "epsilon": 1e-2}),
    ("Nadam", {"learning_rate": 0.05}),
    ("Nadam", {"learning_rate": 0.05, "beta_1": 0.7, "weight_decay": 0.1}),
    ("Lion", {"learning_rate": 0.01}),
    # Only steps that overshoot turn the sign, and so tell the betas apart.
    ("Lion", {"learning_rate": 0.3}),
    ("Lion", {"learning_rate": 0.3, "beta_1": 0.5, "beta_2": 0.8, "weight_decay": 0.1}),
]

# PyTorch adds epsilon in other places than Keras, so it is 0 where the two are to agree; its
# weight_decay is another thing (a term of the gradient) in all but AdamW and a flag of NAdam.
TORCH_OPTIMIZERS = [
    ("SGD", {"learning_rate": 0.01}, "SGD", {"lr": 0.01}),
    ("SGD", {"learning_rate": 0.01, "momentum": 0.9}, "SGD", {"lr": 0.01, "momentum": 0.9}),
    ("SGD", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True},
     "SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"learning_rate": 0.01, "epsilon": 0.0}, "RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 0.0}),
    ("RMSprop", {"learning_rate": 0.01, "rho": 0.8, "momentum": 0.5, "epsilon": 0.0},
     "RMSprop", {"lr": 0.01, "alpha": 0.8, "momentum": 0.5, "eps": 0.0}),
    ("RMSprop", {"learning_rate": 0.01, "centered": True, "epsilon": 0.0},
     "RMSprop", {"lr": 0.01, "alpha": 0.9, "centered": True, "eps": 0.0}),
    ("Adagrad", {"learning_rate": 0.1, "epsilon": 0.0},
     "Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 0.0}),
    ("Adadelta", {"learning_rate": 1.0, "epsilon": 1e-5}, "Adadelta", {"lr": 1.0, "rho": 0.95, "eps": 1e-5}),
    ("Adam", {"learning_rate": 0.05, "epsilon": 0.0}, "Adam", {"lr": 0.05, "eps": 0.0}),
    ("Adam", {"learning_rate": 0.3, "beta_2": 0.6, "amsgrad": True, "epsilon": 0.0},
     "Adam", {"lr": 0.3, "betas": (0.9, 0.6), "amsgrad": True, "eps": 0.0}),
    ("AdamW", {"learning_rate": 0.05, "weight_decay": 0.1, "epsilon": 0.0},
     "AdamW", {"lr": 0.05, "weight_decay": 0.1, "eps": 0.0}),
    ("Adamax", {"learning_rate": 0.05, "epsilon": 0.0}, "Adamax", {"lr": 0.05, "eps": 0.0}),
    ("Nadam", {"learning_rate": 0.05, "weight_decay": 0.1, "epsilon": 0.0},
     "NAdam", {"lr": 0.05, "eps": 0.0, "momentum_decay": 1.0, "weight_decay": 0.1,
               "decoupled_weight_decay": True}),
]  # fmt: skip


def optimizers():
    """Parameters after some of 20 steps on each problem."""
    from problems import PROBLEMS

    cases = []
    for problem in PROBLEMS:
        for name, settings in KERAS_OPTIMIZERS:
            cases.append(_optimizer_case(problem, name, settings, "keras", _keras_steps(name, settings)))
        for name, settings, torch_name, torch_settings in TORCH_OPTIMIZERS:
            steps = _torch_steps(torch_name, torch_settings)
            cases.append(_optimizer_case(problem, name, settings, f"torch.optim.{torch_name}", steps))
    return {"cases": cases}


def _optimizer_case(problem, name, settings, source, take_steps):
    from problems import PROBLEMS

    start, gradient = PROBLEMS[problem]
    after = {}
    for step, params in enumerate(take_steps(start, gradient), start=1):
        if step in KEPT_STEPS:
            after[step] = params
    return {"optimizer": name, "settings": settings, "problem": problem, "source": source, "after": after}


def _keras_steps(name, settings):
    import jax.numpy as jnp
    import keras

    def take_steps(start, gradient):
        given = dict(settings)
        if isinstance(given.get("learning_rate"), dict):
            schedule = given["learning_rate"]
            make = getattr(keras.optimizers.schedules, schedule["class_name"])
            given["learning_rate"] = make(**schedule["config"])
        optimizer = getattr(keras.optimizers, name)(**given)
        variables = {key: keras.Variable(value, dtype="float64") for key, value in start.items()}
        for _ in range(STEPS):
            grads = gradient({key: np.asarray(variable) for key, variable in variables.items()})
            optimizer.apply([jnp.asarray(grads[key]) for key in variables], list(variables.values()))
            yield {key: np.asarray(variable) for key, variable in variables.items()}

    return take_steps


def _torch_steps(name, settings):
    import torch

    def take_steps(start, gradient):
        tensors = {key: torch.tensor(value, requires_grad=True) for key, value in start.items()}
        optimizer = getattr(torch.optim, name)(list(tensors.values()), **settings)
        for _ in range(STEPS):
            grads = gradient({key: t.detach().numpy() for key, t in tensors.items()})
            for key, tensor in tensors.items():
                tensor.grad = torch.tensor(grads[key])
            optimizer.step()
            yield {key: tensor.detach().numpy().copy() for key, tensor in tensors.items()}

    return take_steps


# Schedules

SCHEDULE_STEPS = [0, 1, 2, 3, 5, 7, 10, 11, 14, 19, 20, 21, 29, 30, 31, 45, 69, 70, 71, 100]

KERAS_SCHEDULES = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.9}),
    ("ExponentialDecay",
     {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.9, "staircase": True}),
    ("PiecewiseConstantDecay", {"boundaries": [10, 20, 30], "values": [0.4, 0.3, 0.2, 0.1]}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 20}),
    ("PolynomialDecay",
     {"initial_learning_rate": 0.1, "decay_steps": 20, "end_learning_rate": 0.01, "power": 2.5}),
    ("PolynomialDecay",
     {"initial_learning_rate": 0.1, "decay_steps": 10, "end_learning_rate": 0.01, "cycle": True}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 30}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 30, "alpha": 0.2}),
    ("CosineDecay",
     {"initial_learning_rate": 0.01, "decay_steps": 20, "alpha": 0.1, "warmup_target": 0.2,
      "warmup_steps": 10}),
    ("CosineDecay",
     {"initial_learning_rate": 0.0, "decay_steps": 20, "warmup_target": 0.2, "warmup_steps": 10}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 10}),
    ("CosineDecayRestarts",
     {"initial_learning_rate": 0.1, "first_decay_steps": 10, "t_mul": 1.0, "m_mul": 0.8}),
    ("CosineDecayRestarts",
     {"initial_learning_rate": 0.1, "first_decay_steps": 10, "t_mul": 1.5, "m_mul": 0.8, "alpha": 0.1}),
]  # fmt: skip

TORCH_SCHEDULES = [
    ("StepDecay", {"initial_learning_rate": 0.1, "step_size": 10, "factor": 0.5},
     "StepLR", {"step_size": 10, "gamma": 0.5}),
    ("OneCycle", {"max_learning_rate": 0.1, "total_steps": 101}, "OneCycleLR",
     {"max_lr": 0.1, "total_steps": 101}),
    ("OneCycle",
     {"max_learning_rate": 0.1, "total_steps": 102, "warmup_fraction": 0.45, "start_factor": 0.1,
      "end_factor": 0.01},
     "OneCycleLR",
     {"max_lr": 0.1, "total_steps": 102, "pct_start": 0.45, "div_factor": 10.0, "final_div_factor": 10.0}),
]  # fmt: skip


def schedules():
    """Learning rates at a number of steps."""
    import keras

    cases = []
    for name, settings in KERAS_SCHEDULES:
        schedule = getattr(keras.optimizers.schedules, name)(**settings)
        rates = [float(schedule(step)) for step in SCHEDULE_STEPS]
        cases.append({"schedule": name, "settings": settings, "source": "keras", "rates": rates})
    for name, settings, torch_name, torch_settings in TORCH_SCHEDULES:
        rates = _torch_rates(torch_name, torch_settings)
        source = f"torch.optim.lr_scheduler.{torch_name}"
        cases.append({"schedule": name, "settings": settings, "source": source, "rates": rates})
    return {"steps": SCHEDULE_STEPS, "cases": cases}


def _torch_rates(name, settings):
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = getattr(torch.optim.lr_scheduler, name)(optimizer, **settings)
    rates = []
    for _ in range(max(SCHEDULE_STEPS) + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [rates[step] for step in SCHEDULE_STEPS]


# Losses

LOSSES = [
    ("MeanSquaredError", {}, ["real", "sequences"]),
    ("MeanAbsoluteError", {}, ["real", "sequences"]),
    ("LogCosh", {}, ["real", "sequences"]),
    ("Huber", {}, ["real", "sequences"]),
    ("Huber", {"delta": 0.4}, ["real"]),
    ("Poisson", {}, ["counts"]),
    ("Hinge", {}, ["signs", "labels_of_scores"]),
    ("SquaredHinge", {}, ["signs", "labels_of_scores"]),
    ("KLDivergence", {}, ["distributions", "one_hot"]),
    ("BinaryCrossentropy", {}, ["labels", "label_sequences"]),
    ("BinaryCrossentropy", {"label_smoothing": 0.2}, ["labels"]),
    ("BinaryCrossentropy", {"from_logits": True}, ["labels_of_scores", "label_sequences_of_scores"]),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, ["labels_of_scores"]),
    ("BinaryFocalCrossentropy", {}, ["labels", "label_sequences"]),
    ("BinaryFocalCrossentropy", {"apply_class_balancing": True, "alpha": 0.3, "gamma": 1.5}, ["labels"]),
    ("BinaryFocalCrossentropy", {"gamma": 0.0}, ["labels"]),
    ("BinaryFocalCrossentropy", {"label_smoothing": 0.2}, ["labels"]),
    ("BinaryFocalCrossentropy", {"from_logits": True}, ["labels_of_scores", "label_sequences_of_scores"]),
    ("BinaryFocalCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, ["labels_of_scores"]),
    ("CategoricalCrossentropy", {}, ["one_hot", "one_hot_sequences", "distributions"]),
    ("CategoricalCrossentropy", {"label_smoothing": 0.2}, ["one_hot"]),
    ("CategoricalCrossentropy", {"from_logits": True}, ["one_hot_of_scores", "one_hot_sequences_of_scores"]),
    ("CategoricalCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, ["one_hot_of_scores"]),
    ("CategoricalFocalCrossentropy", {}, ["one_hot", "one_hot_sequences", "distributions"]),
    ("CategoricalFocalCrossentropy", {"alpha": 0.6, "gamma": 1.5, "label_smoothing": 0.2}, ["one_hot"]),
    ("CategoricalFocalCrossentropy", {"from_logits": True}, ["one_hot_of_scores"]),
    ("SparseCategoricalCrossentropy", {}, ["classes", "class_sequences"]),
    ("SparseCategoricalCrossentropy", {"from_logits": True},
     ["classes_of_scores", "class_sequences_of_scores"]),
]  # fmt: skip


def loss_data():
    """Return targets, outputs and one weight a sample, by name.

    Probabilities include 0, 1 and values that the losses clip, and rows that do not add up to 1.
    """
    rng = np.random.default_rng(20)
    weights = {6: rng.uniform(0.2, 3.0, 6).round(3), 3: np.array([0.5, 2.0, 1.25])}

    def real(*shape):
        return rng.normal(size=shape).round(3)

    def probabilities(*shape):
        values = rng.uniform(0.02, 0.98, shape).round(3)
        values.flat[:4] = [0.0, 1.0, 1e-9, 1 - 1e-9]
        return values

    def labels(*shape):
        values = rng.integers(0, 2, shape).astype(float)
        values.flat[:4] = [1.0, 0.0, 0.0, 1.0]
        return values

    classes, class_sequences = np.array([0, 2, 1, 1, 3, 2]), np.array([[0, 3], [1, 1], [2, 0]])
    one_hot, one_hot_sequences = np.eye(4)[classes], np.eye(4)[class_sequences]
    shares, sequence_shares = rng.uniform(0.05, 0.9, (6, 4)).round(3), probabilities(3, 2, 4)
    shares[1] = [0.0, 0.0, 2.0, 0.0]
    soft = rng.dirichlet(np.ones(4), 6)
    scores, sequence_scores = 2 * real(6, 4), 2 * real(3, 2, 4)
    pairs = {
        "real": (real(6, 3), 2 * real(6, 3)),
        "sequences": (real(3, 4, 2), 2 * real(3, 4, 2)),
        "counts": (rng.integers(0, 5, (6, 3)).astype(float), rng.uniform(0.01, 4, (6, 3)).round(3)),
        "signs": (2 * labels(6, 3) - 1, real(6, 3)),
        "labels": (labels(6, 3), probabilities(6, 3)),
        "label_sequences": (labels(3, 4, 2), probabilities(3, 4, 2)),
        "labels_of_scores": (labels(6, 3), 2 * real(6, 3)),
        "label_sequences_of_scores": (labels(3, 4, 2), 2 * real(3, 4, 2)),
        "distributions": (soft, shares),
        "one_hot": (one_hot, shares),
        "one_hot_sequences": (one_hot_sequences, sequence_shares),
        "one_hot_of_scores": (one_hot, scores),
        "one_hot_sequences_of_scores": (one_hot_sequences, sequence_scores),
        "classes": (classes, shares),
        "class_sequences": (class_sequences, sequence_shares),
        "classes_of_scores": (classes, scores),
        "class_sequences_of_scores": (class_sequences, sequence_scores),
    }
    return {
        name: {"target": target, "output": output, "weight": weights[len(output)]}
        for name, (target, output) in pairs.items()
    }


def losses():
    """Values of each sample, their mean with and without weights, and the means' gradients."""
    import keras

    data, cases = loss_data(), []
    for name, settings, used in LOSSES:
        loss = getattr(keras.losses, name)(**settings)
        for key in used:
            found = _loss_numbers(loss, **data[key])
            cases.append({"loss": name, "settings": settings, "data": key, "source": "keras", **found})
    return {"data": data, "cases": cases}


def _loss_numbers(loss, target, output, weight):
    import jax
    import jax.numpy as jnp

    target, output = jnp.asarray(target), jnp.asarray(output)
    values = loss.call(target, output)
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    mean, gradient = jax.value_and_grad(lambda output: loss(target, output))(output)
    weighted_mean, weighted_gradient = jax.value_and_grad(
        lambda output: loss(target, output, sample_weight=weight)
    )(output)
    return {
        "values": values,
        "mean": mean,
        "gradient": gradient,
        "weighted_mean": weighted_mean,
        "weighted_gradient": weighted_gradient,
    }


# Activations

ACTIVATIONS = [
    ("linear", {}, lambda F, x: x),
    ("sigmoid", {}, lambda F, x: F.sigmoid(x)),
    ("tanh", {}, lambda F, x: F.tanh(x)),
    ("relu", {}, lambda F, x: F.relu(x)),
    ("leaky_relu", {}, lambda F, x: F.leaky_relu(x, 0.2)),
    ("leaky_relu", {"negative_slope": 0.05}, lambda F, x: F.leaky_relu(x, 0.05)),
    ("elu", {}, lambda F, x: F.elu(x)),
    ("elu", {"alpha": 0.5}, lambda F, x: F.elu(x, 0.5)),
    ("selu", {}, lambda F, x: F.selu(x)),
    ("gelu", {}, lambda F, x: F.gelu(x)),
    ("gelu", {"approximate": True}, lambda F, x: F.gelu(x, approximate="tanh")),
    ("silu", {}, lambda F, x: F.silu(x)),
    ("softplus", {}, lambda F, x: F.softplus(x, threshold=700)),
    ("exponential", {}, lambda F, x: x.exp()),
    ("softsign", {}, lambda F, x: F.softsign(x)),
    ("hard_sigmoid", {}, lambda F, x: F.hardsigmoid(x)),
    ("mish", {}, lambda F, x: F.mish(x)),
    ("softmax", {}, lambda F, x: F.softmax(x, -1)),
    ("log_softmax", {}, lambda F, x: F.log_softmax(x, -1)),
]

# Near zero, far from it, and between; not at kinks, where a derivative is a matter of taste.
ACTIVATION_INPUT = [
    [-700.0, -30.0, -1e-6, 1e-6, 30.0, 700.0],
    [-8.0, -4.5, -3.1, -2.9, -2.2, -1.7],
    [-1.1, -0.6, -0.25, 0.15, 0.4, 0.75],
    [1.3, 1.9, 2.9, 3.1, 5.0, 12.0],
]


def activations():
    """Outputs, and input gradients for a given output gradient; Keras's, confirmed by PyTorch."""
    import jax
    import jax.numpy as jnp
    import keras
    import torch

    x, dy = np.array(ACTIVATION_INPUT), np.random.default_rng(21).normal(size=(4, 6)).round(3)
    cases = []
    for name, settings, in_torch in ACTIVATIONS:
        function = getattr(keras.activations, name)
        y, pullback = jax.vjp(lambda x, f=function, s=settings: f(x, **s), jnp.asarray(x))
        (dx,) = pullback(jnp.asarray(dy))
        tensor = torch.tensor(x, requires_grad=True)
        torch_y = in_torch(torch.nn.functional, tensor)
        (torch_dx,) = torch.autograd.grad(torch_y, tensor, torch.tensor(dy))
        # PyTorch rounds the slope of its hard_sigmoid to float32.
        np.testing.assert_allclose(y, torch_y.detach().numpy(), rtol=1e-7, atol=1e-14)
        np.testing.assert_allclose(dx, torch_dx.numpy(), rtol=1e-7, atol=1e-14)
        cases.append({
            "activation": name, "settings": settings, "source": "keras, confirmed by torch", "y": y, "dx": dx
        })  # fmt: skip
    return {"data": {"x": x, "dy": dy}, "cases": cases}


# Layers

PENALTIES = {"class_name": "L1L2", "config": {"l1": 0.03, "l2": 0.02}}

LAYERS = [
    ("Dense", {"units": 4}, (5, 3)),
    ("Dense", {"units": 4, "activation": "tanh", "use_bias": False}, (5, 3)),
    ("Dense", {"units": 4, "activation": "gelu"}, (5, 2, 3)),
    ("Dense", {"units": 4, "activation": "softmax"}, (5, 3)),
    ("Dense", {"units": 4, "kernel_regularizer": PENALTIES, "bias_regularizer": "l2"}, (5, 3)),
    ("Dense", {"units": 4, "activation": "sigmoid", "activity_regularizer": PENALTIES}, (5, 3)),
    ("Dense", {"units": 4, "activity_regularizer": "l2"}, (5, 2, 3)),
    ("BatchNormalization", {}, (6, 3)),
    ("BatchNormalization", {"momentum": 0.9, "epsilon": 1e-5}, (4, 2, 3)),
    ("BatchNormalization", {"axis": 1}, (4, 3, 2)),
    ("BatchNormalization", {"center": False}, (6, 3)),
    ("BatchNormalization", {"scale": False}, (6, 3)),
    ("LeakyReLU", {}, (5, 3)),
    ("ELU", {"alpha": 0.7}, (5, 3)),
    ("Softmax", {}, (5, 3)),
]


CONVOLUTION = [
    ("Conv1D", {"filters": 2, "kernel_size": 3}, (2, 6, 2)),
    ("Conv1D", {"filters": 2, "kernel_size": 2, "strides": 2, "padding": "same"}, (2, 5, 2)),
    ("Conv1D", {"filters": 2, "kernel_size": 2, "dilation_rate": 2, "padding": "causal"}, (1, 5, 2)),
    ("Conv1D", {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "causal", "groups": 2}, (1, 5, 4)),
    ("Conv2D", {"filters": 3, "kernel_size": 2, "kernel_regularizer": PENALTIES, "bias_regularizer": "l2",
                "activity_regularizer": "l1"}, (2, 3, 4, 2)),
    ("Conv2D", {"filters": 2, "kernel_size": [3, 2], "padding": "same", "activation": "tanh"}, (1, 4, 3, 2)),
    ("Conv2D", {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same", "use_bias": False}, (1, 5, 4, 2)),
    ("Conv2D", {"filters": 2, "kernel_size": [2, 3], "strides": [3, 2]}, (1, 6, 6, 1)),
    ("Conv2D", {"filters": 2, "kernel_size": 2, "dilation_rate": [2, 1]}, (1, 4, 3, 2)),
    ("Conv2D", {"filters": 2, "kernel_size": [2, 3], "dilation_rate": 2, "padding": "same"}, (1, 4, 3, 1)),
    ("Conv2D", {"filters": 4, "kernel_size": 2, "groups": 2, "padding": "same"}, (1, 3, 3, 4)),
    ("Conv2D", {"filters": 2, "kernel_size": 1, "strides": 2, "activation": "softmax"}, (1, 4, 3, 2)),
    ("DepthwiseConv2D", {"kernel_size": 2, "depthwise_regularizer": "l2", "activation": "tanh"}, (1, 3, 3, 2)),
    ("DepthwiseConv2D", {"kernel_size": 3, "strides": 2, "padding": "same", "depth_multiplier": 2}, (1, 4, 3, 2)),
    ("DepthwiseConv2D", {"kernel_size": 2, "dilation_rate": 2, "use_bias": False}, (1, 3, 4, 2)),
    ("SeparableConv2D", {"filters": 3, "kernel_size": 2, "depth_multiplier": 2, "pointwise_regularizer": "l2",
                         "depthwise_regularizer": "l1"}, (1, 3, 3, 2)),
    ("SeparableConv2D", {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"}, (1, 5, 3, 2)),
    *(("Conv2DTranspose", settings, (1, 2, 3, 2)) for settings in (
        {"filters": 2, "kernel_size": 2, "activation": "tanh"},
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        {"filters": 1, "kernel_size": [4, 3], "strides": [2, 3], "padding": "same"},
        {"filters": 2, "kernel_size": [2, 3], "strides": 3},
        {"filters": 1, "kernel_size": 3, "strides": 2, "output_padding": 1},
        {"filters": 1, "kernel_size": [3, 2], "strides": 2, "padding": "same", "output_padding": 1},
        {"filters": 1, "kernel_size": 2, "dilation_rate": 2},
    )),
    ("UpSampling2D", {"size": [2, 3]}, (1, 2, 2, 2)),
    ("ZeroPadding1D", {"padding": 1}, (1, 2, 2)),
    ("ZeroPadding1D", {"padding": [1, 2]}, (1, 2, 2)),
    ("ZeroPadding2D", {"padding": [1, 2]}, (1, 2, 1, 2)),
    ("ZeroPadding2D", {"padding": [[1, 0], [0, 2]]}, (1, 2, 1, 2)),
    ("Cropping1D", {"cropping": [1, 0]}, (1, 3, 2)),
    ("Cropping2D", {"cropping": [1, 0]}, (1, 3, 2, 2)),
    ("Cropping2D", {"cropping": [[1, 0], [0, 2]]}, (1, 3, 4, 1)),
    *((f"{kind}Pooling1D", settings, (2, 5, 2)) for kind in ("Max", "Average") for settings in (
        {"pool_size": 2}, {"pool_size": 3, "strides": 2, "padding": "same"})),
    *((f"{kind}Pooling2D", settings, (1, 5, 4, 2)) for kind in ("Max", "Average") for settings in (
        {"pool_size": 2}, {"pool_size": [3, 2], "strides": 1},
        {"pool_size": 3, "strides": 2, "padding": "same"}, {"pool_size": 2, "strides": 3, "padding": "same"})),
    *((f"Global{kind}Pooling{rank}D", {"keepdims": keep}, (2, *(3, 2)[:rank], 2))
      for kind in ("Max", "Average") for rank in (1, 2) for keep in (False, True)),
]  # fmt: skip


def convolution():
    """As `layers`, of layers that work on windows."""
    return {"cases": [_layer_case(name, settings, shape, True) for name, settings, shape in CONVOLUTION]}


def layers():
    """Output, penalties, new state, and gradients of sum(dy * y) + penalties, in both modes."""
    return {"cases": [
        _layer_case(name, settings, shape, training)
        for name, settings, shape in LAYERS
        for training in ((True, False) if name == "BatchNormalization" else (True,))
    ]}  # fmt: skip


# Normalisation of single samples, learnt slopes and embeddings.
SAMPLE_LAYERS = [
    ("LayerNormalization", {}, (4, 5)),
    ("LayerNormalization", {"axis": [1, 2], "epsilon": 1e-5}, (3, 2, 4)),
    ("LayerNormalization", {"axis": 1, "center": False}, (3, 4, 2)),
    ("LayerNormalization", {"axis": [3, 1], "scale": False}, (2, 3, 2, 2)),
    ("LayerNormalization", {"gamma_regularizer": PENALTIES, "beta_regularizer": "l2"}, (4, 3)),
    ("GroupNormalization", {"groups": 2}, (3, 4)),
    ("GroupNormalization", {"groups": 3, "epsilon": 1e-5}, (2, 2, 2, 6)),
    ("GroupNormalization", {"groups": 2, "axis": 1, "center": False}, (2, 4, 3)),
    ("GroupNormalization", {"groups": 1, "axis": 2, "scale": False}, (2, 3, 4, 2)),
    ("GroupNormalization", {"groups": -1}, (2, 3, 4)),
    ("RMSNormalization", {}, (4, 5)),
    ("RMSNormalization", {"axis": [1, 2], "epsilon": 0.1}, (3, 2, 4)),
    ("PReLU", {"alpha_regularizer": PENALTIES}, (4, 3)),
    ("PReLU", {"shared_axes": [1, 2]}, (3, 2, 2, 3)),
    ("Permute", {"dims": [3, 1, 2]}, (2, 2, 3, 4)),
    ("RepeatVector", {"n": 3}, (2, 4)),
    ("Embedding", {"input_dim": 4, "output_dim": 3, "embeddings_regularizer": PENALTIES}, (5, 2)),
]


def sample_layers():
    """As `layers`, of layers that do the same in training and inference."""
    return {"cases": [_layer_case(name, settings, shape, True) for name, settings, shape in SAMPLE_LAYERS]}


def _layer_case(name, settings, shape, training):
    import jax
    import keras

    rng = np.random.default_rng(22)
    given = {key: _keras_object(value) for key, value in settings.items()}
    layer = getattr(keras.layers, name)(**given)
    model = keras.Sequential([layer])  # a layer by itself leaves out its activity penalty
    model.build(shape)
    x = (1.5 * rng.normal(size=shape) + 0.5).round(3)
    if name == "Embedding":
        x = rng.integers(0, settings["input_dim"], shape).astype(float)
    dy = rng.normal(size=layer.compute_output_shape(shape)).round(3)
    params = {v.name: rng.normal(size=v.shape).round(3) for v in layer.trainable_variables}
    state = {v.name: rng.uniform(0.5, 1.5, v.shape).round(3) for v in layer.non_trainable_variables}

    def run(params, x):
        y, state_after, penalties = model.stateless_call(
            [params[v.name] for v in layer.trainable_variables],
            [state[v.name] for v in layer.non_trainable_variables],
            x,
            return_losses=True,
            training=training,
        )
        penalty = sum(penalties)
        after = dict(zip(state, state_after, strict=True))
        return (y * dy).sum() + penalty, (y, penalty, after)

    (_, (y, penalty, state_after)), (grads, dx) = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(
        params, x
    )
    return {
        "layer": name, "settings": settings, "training": training, "source": "keras",
        "x": x, "dy": dy, "params": params, "state": state,
        "y": y, "dx": dx, "grads": grads, "state_after": state_after, "penalty": penalty,
    }  # fmt: skip


def _keras_object(value):
    import keras

    if not isinstance(value, dict):
        return value
    return getattr(keras.regularizers, value["class_name"])(**value["config"])


# Attention

PADDED = [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1]]

# Settings, time steps and features of query, value and key, their masks.
KERAS_ATTENTION = [
    ({"num_heads": 2, "key_dim": 3}, [(5, 4)], None),
    ({"num_heads": 3, "key_dim": 2, "value_dim": 5, "output_shape": 2, "use_bias": False}, [(5, 3)], None),
    ({"num_heads": 2, "key_dim": 3, "use_causal_mask": True}, [(5, 4)], None),
    ({"num_heads": 2, "key_dim": 1}, [(1, 3)], None),
    ({"num_heads": 2, "key_dim": 3}, [(5, 4)], [PADDED]),
    ({"num_heads": 1, "key_dim": 3, "use_causal_mask": True}, [(5, 4)], [PADDED]),
    ({"num_heads": 2, "key_dim": 3}, [(3, 4), (5, 2)], None),
    ({"num_heads": 2, "key_dim": 3, "use_causal_mask": True}, [(7, 4), (5, 2), (5, 3)], None),
    ({"num_heads": 2, "key_dim": 2}, [(2, 4), (5, 3)], [[[1, 0], [1, 1], [1, 1]], PADDED]),
    ({"num_heads": 2, "key_dim": 2}, [(3, 4), (5, 3), (5, 2)], [None, PADDED, PADDED[::-1]]),
]


def attention():
    """Output and gradients of sum(dy * y) of attention layers of Keras and PyTorch, in inference."""
    keras_cases = [_keras_attention(*case) for case in KERAS_ATTENTION]
    encoders = [
        _torch_encoder(norm_first, activation, causal, mask)
        for norm_first, activation, causal, mask in (
            (False, "relu", False, None), (True, "gelu", False, None), (False, "gelu", True, None),
            (True, "relu", False, [[1, 1, 0], [1, 0, 0]]),
        )
    ]  # fmt: skip
    torch_cases = [_torch_attention(causal=False), _torch_attention(causal=True), *encoders]
    return {"cases": keras_cases + torch_cases, "positions": [_rotary(), _sinusoidal()]}


def _keras_attention(settings, shapes, masks):
    import jax
    import keras

    rng, batch = np.random.default_rng(24), 3 if masks else 1
    causal = settings.get("use_causal_mask", False)
    given = {name: value for name, value in settings.items() if name != "use_causal_mask"}
    # With dropout, which does nothing in inference, Keras leaves a row without keys at 0 (else it gives it the
    # mean of all), takes another value_dim than key_dim, and stays in float64.
    layer = keras.layers.MultiHeadAttention(**given, dropout=0.5)
    x = [rng.normal(size=(batch, *shape)).round(3) for shape in shapes]
    layer(*(x if len(x) > 1 else 2 * x))
    masks_given = [mask if mask is None else np.array(mask, bool) for mask in masks or []]
    named = zip(
        ("query_mask", "value_mask", "key_mask"),
        masks_given if len(shapes) > 1 else 2 * masks_given,
        strict=False,
    )
    by_name = dict(named)

    def weight(v):
        return rng.normal(size=v.shape).round(3)

    params = {}
    for v in layer.trainable_variables:
        part, name = v.path.split("/")[-2:]
        params.setdefault(part, {})[name] = weight(v)

    def run(params, x):
        three = (*x, x[-1], x[-1])[:2] + ((x[2],) if len(x) == 3 else ())
        values = [params[v.path.split("/")[-2]][v.path.split("/")[-1]] for v in layer.trainable_variables]
        mask = layer._compute_attention_mask(three[0], three[1], use_causal_mask=causal, **by_name)
        y, _ = layer.stateless_call(
            values,
            [v.value for v in layer.non_trainable_variables],
            *three,
            attention_mask=mask,
            training=False,
        )
        return y

    dy = rng.normal(size=run(params, x).shape).round(3)
    grads, dx = jax.grad(lambda params, x: (run(params, x) * dy).sum(), argnums=(0, 1))(params, x)
    return {
        "layer": "MultiHeadAttention", "settings": settings, "source": "keras", "x": [a.tolist() for a in x],
        "masks": masks, "dy": dy, "params": _lists(params), "y": run(params, x), "dx": [a.tolist() for a in dx],
        "grads": _lists(grads),
    }  # fmt: skip


def _lists(values):
    return {name: _lists(v) if isinstance(v, dict) else _as_list(v) for name, v in values.items()}


def _torch_attention(causal):
    import torch

    rng, heads, shapes = np.random.default_rng(25), 2, [(1, 3, 4), (1, 5, 4), (1, 5, 4)]
    layer = torch.nn.MultiheadAttention(4, heads, batch_first=True, dtype=torch.float64).eval()
    x = [torch.tensor(rng.normal(size=shape).round(3), requires_grad=True) for shape in shapes]
    mask = ~torch.ones(3, 5).tril().bool() if causal else None
    _draw(rng, layer)
    y, _ = layer(x[0], x[2], x[1], attn_mask=mask, need_weights=False)
    settings = {"num_heads": heads, "key_dim": 2, "use_causal_mask": causal}
    return _torch_case(
        "MultiHeadAttention", settings, x, None, y, rng, lambda of: _attention_weights(layer, heads, of)
    )


def _torch_encoder(norm_first, activation, causal, mask):
    import torch

    rng, heads = np.random.default_rng(26), 2
    layer = torch.nn.TransformerEncoderLayer(
        4, heads, 3, 0.0, activation, norm_first=norm_first, batch_first=True, dtype=torch.float64
    )
    _draw(rng, layer)
    x = torch.tensor(rng.normal(size=(2, 3, 4)).round(3), requires_grad=True)
    y = layer(
        x,
        src_mask=~torch.ones(3, 3).tril().bool() if causal else None,
        src_key_padding_mask=None if mask is None else ~torch.tensor(mask).bool(),
    )

    def weights(of):
        dense = lambda d: {"kernel": of(d.weight).T, "bias": of(d.bias)}  # noqa: E731
        norm = lambda n: {"gamma": of(n.weight), "beta": of(n.bias)}  # noqa: E731
        inner = {
            "attention": {"multi_head_attention": _attention_weights(layer.self_attn, heads, of)},
            "feed_forward": {"feed_forward": {"inner": dense(layer.linear1), "outer": dense(layer.linear2)}},
        }
        norms = {"attention": norm(layer.norm1), "feed_forward": norm(layer.norm2)}
        if norm_first:
            return {name: {"chain": {f"{name}_norm": norms[name], **inner[name]}} for name in inner}
        return {name: {"chain": inner[name]} for name in inner} | {f"{n}_norm": norms[n] for n in norms}

    settings = {"num_heads": heads, "ff_dim": 3, "activation": activation, "norm_first": norm_first}
    settings |= {"use_causal_mask": True} if causal else {}
    return _torch_case("TransformerBlock", settings, [x], mask and [mask], y, rng, weights)


def _draw(rng, layer):
    import torch

    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.tensor((0.5 * rng.normal(size=parameter.shape)).round(3)))


def _attention_weights(layer, heads, of):
    """Return the weights of PyTorch's attention, or their gradients, as Keras lays them out."""
    matrices, vectors = np.split(of(layer.in_proj_weight), 3), np.split(of(layer.in_proj_bias), 3)
    parts = {}
    for name, matrix, vector in zip(("query", "key", "value"), matrices, vectors, strict=True):
        features = matrix.shape[1]
        parts[name] = {"kernel": matrix.T.reshape(features, heads, -1), "bias": vector.reshape(heads, -1)}
    out = of(layer.out_proj.weight).T
    parts["attention_output"] = {
        "kernel": out.reshape(heads, -1, out.shape[1]),
        "bias": of(layer.out_proj.bias),
    }
    return parts


def _torch_case(name, settings, x, masks, y, rng, weights):
    """Of padding, PyTorch computes what Keras does not: dy is 0 there, and y is not to be compared."""
    import torch

    dy = rng.normal(size=y.shape).round(3)
    if masks:
        dy = dy * np.array(masks[0])[:, :, None]
    (y * torch.tensor(dy)).sum().backward()
    return {
        "layer": name, "settings": settings, "source": "torch", "x": [a.tolist() for a in x], "masks": masks, "dy": dy,
        "params": _lists(weights(lambda w: w.detach().numpy())), "y": y.detach().numpy(),
        "dx": [a.grad.tolist() for a in x], "grads": _lists(weights(lambda w: w.grad.numpy())),
    }  # fmt: skip


def _rotary():
    """Pairs (i, i + features/2) as complex numbers, turned: the formula of GPT-NeoX and KerasHub."""
    import torch

    x = torch.tensor(np.random.default_rng(27).normal(size=(2, 5, 6)).round(3))
    pairs = torch.complex(x[..., :3], x[..., 3:])
    angles = torch.outer(torch.arange(5.0, dtype=x.dtype), 100.0 ** (-torch.arange(3.0, dtype=x.dtype) / 3))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    y = torch.cat([turned.real, turned.imag], dim=-1)
    return {"layer": "RotaryPositions", "settings": {"max_wavelength": 100.0}, "source": "torch",
            "x": x.numpy(), "y": y.numpy()}  # fmt: skip


def _sinusoidal():
    x = np.random.default_rng(28).normal(size=(2, 4, 5)).round(3)
    y = x.copy()
    for t in range(4):
        for i in range(5):
            angle = t / 10000 ** (2 * (i // 2) / 5)
            y[:, t, i] += np.cos(angle) if i % 2 else np.sin(angle)
    return {
        "layer": "SinusoidalPositions",
        "settings": {},
        "source": "the formula of the paper",
        "x": x,
        "y": y,
    }


# Layers of sequences: (class, settings, batch, what else); layers inside are (class, settings)

SEQUENCES = [
    *[(name, settings, 2, more)
      for name, other in (
          ("SimpleRNN", {"activation": "relu", "use_bias": False}),
          ("LSTM", {"activation": "gelu", "recurrent_activation": "hard_sigmoid"}),
          ("GRU", {"reset_after": False}),
      )
      for settings, more in (
          ({}, {}),
          ({"return_sequences": True}, {"mask": True}),
          ({"return_sequences": True, "return_state": True, "go_backwards": True}, {"states": True}),
          ({"go_backwards": True}, {"mask": True}),
          ({**other, "return_state": True}, {"mask": True, "states": True}),
      )],
    ("GRU", {"return_sequences": True, "zero_output_for_mask": True}, 2, {"mask": True}),
    ("GRU", {"use_bias": False}, 2, {}),
    ("LSTM", {}, 1, {"steps": 1}),
    *[("Bidirectional", {"layer": ("LSTM", {"return_sequences": True}), "merge_mode": mode}, 2, {"mask": True})
      for mode in ("concat", "sum", "mul", "ave", None)],
    ("Bidirectional", {"layer": ("GRU", {})}, 2, {}),
    ("Bidirectional", {"layer": ("SimpleRNN", {"return_state": True}),
                       "backward_layer": ("SimpleRNN", {"return_state": True, "go_backwards": True})},
     2, {"mask": True, "states": True}),
    ("TimeDistributed", {"layer": ("Dense", {})}, 2, {}),
    ("Masking", {"mask_value": 0.5}, 2, {}),
    ("BatchNormalization", {}, 3, {"mask": True}),
    ("GlobalAveragePooling1D", {}, 2, {"mask": True}),
]  # fmt: skip


def sequences():
    """Output, gradients and new state of Keras's layers, some with a mask whose first sequence counts nowhere."""
    return {"cases": [_sequence_case(*case) for case in SEQUENCES]}


def _sequence_case(name, settings, batch, more):
    import jax
    import keras

    rng = np.random.default_rng(5)
    settings = {"units": 2, **settings} if name in ("SimpleRNN", "LSTM", "GRU") else settings
    given = {key: _inner_layer(value) for key, value in settings.items()}
    layer = getattr(keras.layers, name)(**given)
    x = rng.normal(size=(batch, more.get("steps", 4), 3)).round(2)
    if name == "Masking":
        x[0, 1:3] = settings["mask_value"]
    layer.build(x.shape)
    mask = None
    if more.get("mask"):
        mask = rng.random(x.shape[:2]) < 0.6
        mask[0] = name == "GlobalAveragePooling1D"  # Keras's mean of nothing is nan
        mask[-1, -1] = False
    keywords = {"training": True} if name == "BatchNormalization" else {}
    keywords |= {} if mask is None else {"mask": mask}
    count = {"LSTM": 2, "Bidirectional": 2}.get(name, 1) if more.get("states") else 0
    states = [rng.normal(size=(batch, 2)).round(2) for _ in range(count)]
    weights = [rng.normal(size=v.shape).round(2) for v in layer.trainable_variables]
    state = [
        rng.uniform(0.5, 1.5, v.shape).round(2) for v in layer.non_trainable_variables if "seed" not in v.path
    ]
    kept = [v.value for v in layer.non_trainable_variables if "seed" in v.path]

    def outputs(weights, x, states):
        if states:
            keywords["initial_state"] = states
        y, after = layer.stateless_call(weights, [*state, *kept], x, **keywords)
        return (list(y) if isinstance(y, (list, tuple)) else [y]), after[: len(state)]

    y, _ = outputs(weights, x, states)
    dy = [rng.normal(size=part.shape).round(2) for part in y]

    def total(*arguments):
        y, after = outputs(*arguments)
        return sum((a * b).sum() for a, b in zip(y, dy, strict=True)), (y, after)

    (_, (y, after)), (grads, dx, dstates) = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(
        weights, x, states
    )
    return {
        "layer": name, "settings": settings, "source": "keras",
        "x": [x, *states], "mask": None if mask is None else mask.tolist(),
        "weights": weights, "state": state, "dy": dy,
        "y": [_rounded(part) for part in y], "dx": [_rounded(part) for part in (dx, *dstates)],
        "grads": [_rounded(part) for part in grads], "state_after": [_rounded(part) for part in after],
    }  # fmt: skip


def _rounded(array):
    """Return an array with as many digits as it is compared to."""
    return np.asarray(array, dtype=np.float64).round(9)


def _inner_layer(value):
    import keras

    if not isinstance(value, tuple):
        return value
    name, settings = value
    return getattr(keras.layers, name)(2, **settings)


# Regularizers

REGULARIZERS = [
    ("L1", {}),
    ("L1", {"l1": 0.3}),
    ("L2", {}),
    ("L2", {"l2": 0.3}),
    ("L1L2", {}),
    ("L1L2", {"l1": 0.3, "l2": 0.2}),
]


def models():
    """Loss and metrics of training steps of models with masks, and with several inputs and outputs."""
    return {"cases": [_masked_model(weighted) for weighted in (False, True)] + [_model_of_two()]}


def _masked_model(weighted):
    import keras

    rng = np.random.default_rng(31)
    ids = np.array([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [2, 0, 1, 3, 5], [0, 0, 0, 0, 0]])
    weight = rng.uniform(0.5, 2, len(ids)) if weighted else None
    inner = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(6, activation="softmax")]
    model = keras.Sequential([keras.layers.Input((5,)), keras.layers.Embedding(6, 3, mask_zero=True), *inner])
    starts = [rng.standard_normal(w.shape) for w in model.get_weights()]
    model.set_weights(starts)
    # The loss alone: Keras on JAX loses the mask on the way to its metrics.
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    # Keras takes one weight a time step only.
    spread = None if weight is None else np.broadcast_to(weight[:, None], ids.shape)
    made = _steps(model, ids, ids, spread, starts)
    return {
        **made,
        "name": "masked" + " and weighted" * weighted,
        "source": "keras",
        "weight": _as_lists(weight),
    }


def _model_of_two():
    import keras

    rng = np.random.default_rng(32)
    x = {"numbers": rng.standard_normal((6, 3)), "city": rng.integers(0, 4, (6, 1))}
    y = {"price": rng.standard_normal((6, 1)), "kind": rng.integers(0, 3, (6, 1))}
    numbers, city = keras.Input((3,), name="numbers"), keras.Input((1,), name="city")
    vectors = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(city))
    hidden = keras.layers.Dense(5, activation="tanh")(keras.layers.Concatenate()([numbers, vectors]))
    price = keras.layers.Dense(1, name="price")(hidden)
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(hidden)
    model = keras.Model({"numbers": numbers, "city": city}, {"price": price, "kind": kind})
    starts = [rng.standard_normal(w.shape) for w in model.get_weights()]
    model.set_weights(starts)
    model.compile(
        keras.optimizers.SGD(0.1),
        {"price": "mse", "kind": "sparse_categorical_crossentropy"},
        loss_weights={"price": 0.5, "kind": 2.0},
        metrics={"price": ["mae"], "kind": ["accuracy"]},
    )
    return {"name": "two inputs, two outputs", "source": "keras", **_steps(model, x, y, None, starts)}


def _steps(model, x, y, weight, starts):
    logs = []
    for _ in range(3):
        model.reset_metrics()
        logs.append(model.train_on_batch(x, y, weight, return_dict=True))
    return {
        "x": _as_lists(x), "y": _as_lists(y), "weight": _as_lists(weight), "starts": _as_lists(starts),
        "logs": [{name: float(value) for name, value in log.items()} for log in logs],
        "weights": [np.asarray(w).tolist() for w in model.get_weights()],
    }  # fmt: skip


def _as_lists(value):
    """Return arrays inside dicts and lists as lists."""
    if isinstance(value, dict):
        return {name: _as_lists(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_lists(part) for part in value]
    return None if value is None else value.tolist()


def regularizers():
    """Penalties on an array, and their gradients."""
    import jax
    import jax.numpy as jnp
    import keras

    weights, cases = np.random.default_rng(23).normal(size=(3, 4)).round(3), []
    for name, settings in REGULARIZERS:
        regularizer = getattr(keras.regularizers, name)(**settings)
        penalty, gradient = jax.value_and_grad(regularizer)(jnp.asarray(weights))
        cases.append({
            "regularizer": name, "settings": settings, "source": "keras",
            "penalty": penalty, "gradient": gradient,
        })  # fmt: skip
    return {"data": {"weights": weights}, "cases": cases}


# Metrics: name, nnx's settings, Keras's settings where they differ, data.

METRICS = [
    ("MeanSquaredError", {}, None, ["real", "sequences"]),
    ("MeanAbsoluteError", {}, None, ["real", "sequences"]),
    ("RootMeanSquaredError", {}, None, ["real", "sequences"]),
    ("R2Score", {}, None, ["real", "constant"]),
    ("BinaryAccuracy", {}, None, ["labels", "one_label"]),
    ("BinaryAccuracy", {"threshold": 0.25}, None, ["labels"]),
    ("CategoricalAccuracy", {}, None, ["one_hot", "one_hot_sequences"]),
    ("SparseCategoricalAccuracy", {}, None, ["classes", "class_sequences"]),
    ("TopKCategoricalAccuracy", {}, None, ["one_hot"]),
    ("TopKCategoricalAccuracy", {"k": 2}, None, ["one_hot", "one_hot_sequences"]),
    ("SparseTopKCategoricalAccuracy", {"k": 2}, None, ["classes", "class_sequences"]),
    ("Precision", {}, None, ["labels", "one_label", "none_predicted"]),
    ("Precision", {"thresholds": 0.25}, None, ["labels"]),
    ("Recall", {}, None, ["labels", "one_label", "none_predicted"]),
    ("Recall", {"thresholds": 0.25}, None, ["labels"]),
    ("F1Score", {"threshold": 0.5, "average": "macro"}, None, ["labels", "one_label", "none_predicted"]),
    ("F1Score", {"threshold": 0.25, "average": "micro"}, None, ["labels"]),
    ("AUC", {}, None, ["labels", "one_label"]),
    ("AUC", {"num_thresholds": 5}, None, ["labels", "one_label"]),
]


def metric_data():
    """Return targets, outputs and one weight a sample, by name; with ties and values at thresholds."""
    rng = np.random.default_rng(24)

    def grid(*shape):
        return rng.integers(0, 9, shape) / 8

    classes, class_sequences = rng.integers(0, 6, 12), rng.integers(0, 6, (4, 3))
    shares, sequence_shares = grid(12, 6), grid(4, 3, 6)
    labels = rng.integers(0, 2, (12, 3)).astype(float)
    pairs = {
        "real": (rng.normal(size=(12, 3)).round(3), rng.normal(size=(12, 3)).round(3)),
        "sequences": (rng.normal(size=(4, 3, 2)).round(3), rng.normal(size=(4, 3, 2)).round(3)),
        "constant": (np.full((12, 2), [1.5, 0.25]), rng.normal(size=(12, 2)).round(3)),
        "labels": (labels, grid(12, 3)),
        "one_label": (labels[:, :1], rng.uniform(size=(12, 1)).round(3)),
        "none_predicted": (labels, np.full((12, 3), 0.25)),
        "one_hot": (np.eye(6)[classes], shares),
        "one_hot_sequences": (np.eye(6)[class_sequences], sequence_shares),
        "classes": (classes, shares),
        "class_sequences": (class_sequences, sequence_shares),
    }
    weights = {n: rng.uniform(0.2, 3.0, n).round(3) for n in (12, 4)}
    return {
        name: {
            "target": target,
            "output": output,
            # Weights without rounding, lest a constant seem to vary.
            "weight": np.tile([0.5, 2.0, 1.0], 4) if name == "constant" else weights[len(output)],
        }
        for name, (target, output) in pairs.items()
    }


def metrics():
    """Values with and without weights.

    Keras's F1Score adds its epsilon, 1e-7, to every denominator, which keeps a perfect score from
    being 1. Here it is made negligible, so that the score itself is compared.
    """
    import keras

    data, cases = metric_data(), []
    for name, settings, keras_settings, used in METRICS:
        keras.config.set_epsilon(1e-15 if name == "F1Score" else 1e-7)
        for key in used:
            target, output, weight = data[key].values()
            if name not in ("F1Score", "R2Score"):
                weight = weight.reshape(-1, *[1] * (np.ndim(output) - 1))
                weight = weight[..., 0] if name.endswith("CategoricalAccuracy") else weight
            values = []
            for sample_weight in (None, weight):
                metric = getattr(keras.metrics, name)(**(keras_settings or settings))
                metric.update_state(target, output, sample_weight=sample_weight)
                values.append(float(metric.result()))
            cases.append({
                "metric": name, "settings": settings, "data": key, "source": "keras",
                "value": values[0], "weighted_value": values[1],
            })  # fmt: skip
    keras.config.set_epsilon(1e-7)
    return {"data": data, "cases": cases}


# Default values

REQUIRED = "<required>"


def defaults():
    """Arguments and default values of Keras's classes, and the names that stand for them."""
    import keras

    modules = {
        "optimizers": keras.optimizers,
        "schedules": keras.optimizers.schedules,
        "losses": keras.losses,
        "metrics": keras.metrics,
        "initializers": keras.initializers,
        "regularizers": keras.regularizers,
        "layers": keras.layers,
        "callbacks": keras.callbacks,
    }
    tables = {kind: _class_defaults(module) for kind, module in modules.items()}
    tables["activations"] = {
        name: _arguments(function)
        for name, function in sorted(vars(keras.activations).items())
        if inspect.isfunction(function) and name not in ("deserialize", "get", "serialize")
    }
    methods = ("compile", "fit", "evaluate", "predict", "summary", "train_on_batch")
    tables["model"] = {name: _arguments(getattr(keras.Model, name)) for name in methods}
    return {**tables, "names": _names(modules)}


def _class_defaults(module):
    classes = {name: value for name, value in sorted(vars(module).items()) if inspect.isclass(value)}
    return {name: _arguments(cls.__init__) for name, cls in classes.items() if name[0].isupper()}


def _arguments(function):
    found = {}
    for p in inspect.signature(function).parameters.values():
        if p.name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            found[p.name] = REQUIRED if p.default is p.empty else p.default
    return found


def _names(modules):
    """Return by kind what class or function each name stands for: {"mse": "mean_squared_error", ...}."""
    found = {}
    for kind in ("optimizers", "losses", "metrics", "initializers", "regularizers"):
        known = inspect.getmodule(modules[kind].get).ALL_OBJECTS_DICT
        found[kind] = {name: value.__name__ for name, value in sorted(known.items()) if name[0].islower()}
    return found


if __name__ == "__main__":
    main()
