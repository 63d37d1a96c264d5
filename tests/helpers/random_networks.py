"""Random networks with their training, each drawn from one seed and written as the text of a program.

`text(seed)` is runnable Python: it defines the data `X` and `Y`, `model()`, which makes and compiles a model, and
`change(model)`, which is called between two fits. `run` trains such a program on one backend and returns all numbers
that it gave; `differences` compares two such runs.
"""

import contextlib
import random
import re
import string
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import own_layers as own
from every_backend import full_of_nan
from nnx.backends.numpy import backend as numpy_backend
from nnx.backends.numpy import fusion

import nnx
from nnx import layers, losses, metrics, optimizers, regularizers, schedules, tree

LARGEST = 72  # elements of a sample between two layers

HEAD = '''"""Random network {seed}. Run it with tests/ on the path, and NNX_REPLAY=0 or NNX_BACKEND=jax to compare."""

import numpy as np
import own_layers as own

import nnx
from nnx import layers, losses, metrics, optimizers, regularizers, schedules

rng, N = np.random.default_rng({seed}), {count}
'''
SPACE = {
    "np": np, "own": own, "nnx": nnx, "layers": layers, "losses": losses, "metrics": metrics,
    "optimizers": optimizers, "regularizers": regularizers, "schedules": schedules,
}  # fmt: skip
ACTIVATIONS = (
    "relu", "tanh", "sigmoid", "softplus", "gelu", "elu", "selu", "silu", "softsign", "leaky_relu", "hard_sigmoid",
    "mish", "softmax", "log_softmax", "gelu_tanh", "linear",
)  # fmt: skip
ACTIVATION_LAYERS = (
    "ReLU()", "Sigmoid()", "Tanh()", "Softmax()", "LeakyReLU(0.2)", "ELU(0.7)", "GELU()", "SELU()", "SiLU()",
    "Softplus()", "Softsign()", "HardSigmoid()", "Mish()", "LogSoftmax()", "Linear()", "GELU(approximate=True)",
)  # fmt: skip
BETAS = {"beta_1": 0.7, "beta_2": 0.95}
OPTIMIZERS = {
    "optimizers.SGD": {"momentum": 0.9, "nesterov": True},
    "optimizers.RMSprop": {"rho": 0.7, "momentum": 0.5, "centered": True},
    "optimizers.Adam": {**BETAS, "amsgrad": True, "epsilon": 1e-3},
    "optimizers.AdamW": {**BETAS, "amsgrad": True},
    "optimizers.Adamax": BETAS,
    "optimizers.Nadam": BETAS,
    "optimizers.Adagrad": {"initial_accumulator_value": 0.3},
    "optimizers.Adadelta": {"rho": 0.8},
    "optimizers.Lion": BETAS,
    "own.SignedMean": {"share": 0.2},
}
# What may change between two fits: the class of a layer, or None for the optimizer, a setting, and its new value.
CHANGES = (
    (None, "momentum", 0.3), (None, "beta_1", 0.5), (None, "weight_decay", 0.03), (None, "clipnorm", 0.1),
    (None, "global_clipnorm", 0.1), (None, "clipvalue", 0.01), (None, "rho", 0.6), (None, "epsilon", 0.1),
    (None, "share", 0.7), ("layers.Dropout", "rate", 0.6), ("layers.GaussianNoise", "stddev", 0.3),
    ("layers.BatchNormalization", "momentum", 0.5), ("layers.LeakyReLU", "negative_slope", 0.05),
    ("layers.ELU", "alpha", 0.2), ("own.KernelOfAMethod", "factor", 1.3), ("own.KernelOfALambda", "factor", 1.3),
)  # fmt: skip
NO_LAYERS = "[]"


class Draw:
    """Draws the parts of one program."""

    def __init__(self, seed: int, with_own: bool):
        self.random = random.Random(seed)
        self.with_own = with_own
        self.own_share = self.pick(0.0, 0.0, 0.15, 0.3) * with_own
        self.leaves_rules = self.chance(0.6 * with_own)
        self.is_portable = True
        """Whether it gives the same on every backend."""
        self.is_smooth = True
        """Whether rounding stays small: not where the sign of a number near zero decides."""
        self.can_be_saved = True

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *values):
        return self.random.choice(values)

    def between(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def names(self, count: int) -> list[str]:
        """Return names in an order that is seldom the sorted one."""
        return self.random.sample(string.ascii_lowercase, count)

    def arguments(self, *required, **optional) -> str:
        """Return the text of arguments: the required ones, and some of the optional ones."""
        given = [str(value) for value in required]
        for name, value in optional.items():
            if self.chance(0.35):
                given.append(f"{name}={value() if callable(value) else repr(value)}")
        return ", ".join(given)

    def call(self, cls: str, *required, **optional) -> str:
        """Return the text of a layer; see `arguments`."""
        return f"layers.{cls}({self.arguments(*required, **optional)})"

    def activation(self) -> str:
        parametric = ("nnx.activations.ELU(0.5)", "nnx.activations.LeakyReLU(0.1)")
        return self.pick(*map(repr, ACTIVATIONS), *parametric)

    def regularizer(self) -> str:
        found = ("L1(0.003)", "L2(0.02)", "L1L2(0.002, 0.01)")
        return self.pick("'l2'", "'l1'", *(f"regularizers.{text}" for text in found))

    def usual(self) -> dict:
        """Return optional arguments that many layers take."""
        names = ("kernel_regularizer", "activity_regularizer")
        bias = self.pick({"use_bias": False}, {"bias_regularizer": self.regularizer})
        return bias | {name: self.regularizer for name in names if self.chance(0.3)}

    # Layers: each method returns the text of a layer for samples of a shape, or None.

    def layer(self, shape, depth: int) -> tuple[str, tuple]:
        """Return the text of a layer for samples of a shape, and the shape of its output."""
        makers = (
            ["own_layer"] if self.chance(self.own_share) else [*self.ANY, *self.BY_RANK.get(len(shape), ())]
        )
        while True:
            made = getattr(self, self.pick(*makers))(shape, depth)
            if made is None:
                continue
            try:
                found = shape_after(made, shape)
            except (ValueError, TypeError):  # does not fit
                continue
            if isinstance(found, tuple) and found and 0 < np.prod(found) <= LARGEST and len(found) <= 3:
                return made, found

    def layers(self, shape, count: int, depth: int) -> tuple[str, tuple]:
        """Return the text of a list of layers, and the shape of the output."""
        made = []
        for _ in range(count):
            text, shape = self.layer(shape, depth)
            made.append(text)
        if self.chance(0.3):
            made = [named(text, name) for text, name in zip(made, self.names(count), strict=True)]
        return f"[{', '.join(made)}]", shape

    def own_layer(self, shape, depth):
        if not self.with_own:
            return None
        if self.leaves_rules and self.chance(0.6):
            self.is_portable = False
            return f"own.{self.pick(*own.NUMPY_ONLY)}"
        return f"own.{self.pick(*own.PORTABLE)}"

    def dense(self, shape, depth):
        return self.call("Dense", self.between(1, 7), activation=self.activation, **self.usual())

    def activation_layer(self, shape, depth):
        return f"layers.{self.pick(f'Activation({self.activation()})', self.pick(*ACTIVATION_LAYERS))}"

    def prelu(self, shape, depth):
        return self.call(
            "PReLU", alpha_initializer="uniform", alpha_regularizer=self.regularizer, shared_axes=[1]
        )

    def norm(self, shape, depth):
        kind = self.pick("BatchNormalization", "LayerNormalization", "RMSNormalization", "GroupNormalization")
        if kind == "RMSNormalization":
            return self.call(kind)
        if kind == "GroupNormalization":
            return self.call(kind, self.pick(1, 2, shape[-1]))
        mine = {"momentum": 0.7} if kind == "BatchNormalization" else {"gamma_regularizer": self.regularizer}
        if self.chance(0.3):
            mine = {"scale": False}
        return self.call(kind, center=False, epsilon=1e-2, **mine)

    def noise(self, shape, depth):
        kind = self.pick("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise")
        return self.call(kind, self.pick(0.1, 0.3, 0.5), seed=3)

    def residual(self, shape, depth):
        inner, found = self.layers(shape, self.between(1, 2), depth + 1)
        if found[:-1] != shape[:-1] or depth > 1:
            return None
        if found != shape:
            inner = f"{inner[:-1]}, layers.Dense({shape[-1]})]"
        return f"layers.Residual({inner})"

    def parallel(self, shape, depth):
        if depth > 1:
            return None
        merge = self.pick("concat", "add", "multiply", "average", "maximum", "minimum")
        if self.chance(0.5):  # equal ones
            branches = [f"layers.Dense({self.pick(3, shape[-1])})"] * self.between(2, 3)
        else:
            branches = [
                self.layers(shape, self.between(0, 2), depth + 1)[0] for _ in range(self.between(2, 3))
            ]
        if self.chance(0.6):
            branches = [as_dict(self.names(len(branches)), branches)]
        return f"layers.Parallel({', '.join(branches)}, merge={merge!r})"

    def chain(self, shape, depth):
        return f"layers.Chain({self.layers(shape, self.between(1, 3), depth + 1)[0]})" if depth < 2 else None

    def reshape(self, shape, depth):
        size = int(np.prod(shape))
        rows = self.pick(*(k for k in (1, 2, 3, 4, 6) if size % k == 0))
        return self.pick(
            "layers.Flatten()", f"layers.Reshape(({rows}, -1))", f"layers.Reshape(({rows}, 1, -1))"
        )

    def function(self, shape, depth):
        if self.chance(0.7):
            return None
        self.can_be_saved = False
        return (
            "layers.Lambda(lambda xp, x: (xp.tanh(x) * 1.5, lambda dy: dy * 1.5 * (1.0 - xp.tanh(x) ** 2)))"
        )

    def repeat(self, shape, depth):
        return f"layers.RepeatVector({self.between(1, 4)})"

    def permute(self, shape, depth):
        return f"layers.Permute({tuple(self.random.sample(range(1, len(shape) + 1), len(shape)))})"

    def conv1d(self, shape, depth):
        return self.call(
            "Conv1D", self.between(1, 4), self.between(1, 3), strides=self.pick(1, 2),
            padding=self.pick("same", "causal"), dilation_rate=2, groups=2, activation=self.activation, **self.usual(),
        )  # fmt: skip

    def recurrent(self, shape, depth):
        kind = self.pick("SimpleRNN", "LSTM", "GRU")
        mine = {"SimpleRNN": {}, "LSTM": {"unit_forget_bias": False}, "GRU": {"reset_after": False}}[kind]
        made = self.call(
            kind, self.between(1, 4), activation=self.activation, return_sequences=True, go_backwards=True,
            dropout=0.2, recurrent_dropout=0.2, zero_output_for_mask=True, recurrent_regularizer=self.regularizer,
            **mine, **self.usual(),
        )  # fmt: skip
        both_ways = self.chance(0.3)
        return (
            self.call("Bidirectional", made, merge_mode=self.pick("sum", "mul", "ave")) if both_ways else made
        )

    def attention(self, shape, depth):
        common = {"use_causal_mask": True, "rotary": True, "block_size": self.pick(1, 2, 3), "dropout": 0.2}
        heads, key_dim = self.between(1, 2), self.pick(2, 4)
        if self.chance(0.4):
            return self.call(
                "TransformerBlock", heads, self.between(1, 5), key_dim=key_dim, activation=self.activation,
                norm_first=True, **common,
            )  # fmt: skip
        bias = self.pick({"use_bias": False}, {"bias_regularizer": self.regularizer})
        made = self.call(
            "MultiHeadAttention",
            heads,
            key_dim,
            value_dim=3,
            kernel_regularizer=self.regularizer,
            **bias,
            **common,
        )
        crossed = f"layers.Chain([layers.Outputs([], layers.Dense({self.between(1, 4)})), {made}])"
        return crossed if self.chance(0.2) else made

    def positions(self, shape, depth):
        return self.pick(
            "layers.SinusoidalPositions()", "layers.RotaryPositions()",
            f"layers.PositionEmbedding({shape[0] + self.pick(0, 2)})",
        )  # fmt: skip

    def over_time(self, shape, depth):
        if depth > 1:
            return None
        return f"layers.TimeDistributed({self.layers(shape[1:], self.between(1, 2), depth + 1)[0]})"

    def pooling(self, shape, depth):
        name, rank = self.pick("MaxPooling", "AveragePooling"), f"{len(shape) - 1}D"
        if self.chance(0.4):
            return self.call(f"Global{name}{rank}", keepdims=True)
        return self.call(f"{name}{rank}", self.between(1, 3), strides=self.pick(1, 2), padding="same")

    def of_steps(self, shape, depth):
        return "layers." + self.pick(
            "ZeroPadding1D(1)", "ZeroPadding1D((0, 2))", "Cropping1D((1, 0))", "SpatialDropout1D(0.3)", "Masking()",
            "Masking(0.5)",
        )  # fmt: skip

    def of_pixels(self, shape, depth):
        return "layers." + self.pick(
            "ZeroPadding2D(1)", "Cropping2D(((1, 0), (0, 1)))", "SpatialDropout2D(0.3)", "UpSampling2D(2)",
            "UpSampling2D((1, 2))",
        )  # fmt: skip

    def conv2d(self, shape, depth):
        kind = self.pick("Conv2D", "Conv2D", "Conv2DTranspose", "SeparableConv2D", "DepthwiseConv2D")
        sizes = (
            [self.between(1, 3)] if kind == "DepthwiseConv2D" else [self.between(1, 3), self.between(1, 3)]
        )
        mine = {"Conv2D": {"groups": self.pick(1, 2), **self.usual()}}.get(kind, {"use_bias": False})
        if kind in ("DepthwiseConv2D", "SeparableConv2D"):
            mine |= {"depth_multiplier": 2, "depthwise_regularizer": self.regularizer}
        return self.call(
            kind,
            *sizes,
            strides=self.pick(1, 2),
            padding="same",
            dilation_rate=2,
            activation=self.activation,
            **mine,
        )

    ANY = (
        "dense", "dense", "activation_layer", "activation_layer", "prelu", "norm", "norm", "noise", "residual",
        "parallel", "parallel", "chain", "reshape", "function", "own_layer",
    )  # fmt: skip
    BY_RANK = {  # noqa: RUF012
        1: ("repeat", "dense", "dense"),
        2: (
            "permute", "conv1d", "recurrent", "recurrent", "recurrent", "attention", "attention", "positions",
            "over_time", "pooling", "of_steps",
        ),
        3: ("permute", "conv2d", "conv2d", "conv2d", "over_time", "pooling", "of_pixels"),
    }  # fmt: skip

    # Data, losses, optimizers

    def input(self) -> tuple[str, str, tuple]:
        """Return the texts of an input and of a list of the layers that it needs, and the shape behind them."""
        kind = self.pick("vector", "vector", "sequence", "image", "categories")
        if kind == "categories":
            length, count = self.between(1, 5), self.between(2, 6)
            taken = self.call(
                "Embedding",
                count,
                self.between(1, 4),
                mask_zero=True,
                embeddings_regularizer=self.regularizer,
            )
            return f"rng.integers(0, {count}, (N, {length}))", f"[{taken}]", shape_after(taken, (length,))
        shape = {
            "vector": (self.between(1, 7),),
            "sequence": (self.between(2, 6), self.between(1, 4)),
            "image": (self.between(2, 5), self.between(2, 5), self.between(1, 3)),
        }[kind]
        rounded = ".round(0)" if self.chance(0.15) else ""  # has zeros and equal numbers
        return f"rng.normal(size={('N', *shape)}){rounded}".replace("'N'", "N"), NO_LAYERS, shape

    def inputs(self) -> tuple[str, str, tuple]:
        """Return the same of several inputs."""
        count, merge = self.between(2, 3), self.pick("concat", "add", "multiply", "average", "maximum")
        found, branches, shapes = [], [], []
        for _ in range(count):
            data, taken, shape = self.input()
            inner, shape = self.layers(shape, self.between(0, 2), 1)
            more = [
                *(["layers.Flatten()"] if len(shape) > 1 else []),
                *(["layers.Dense(4)"] if merge != "concat" else []),
            ]
            branches.append(joined(taken, inner, f"[{', '.join(more)}]"))
            shapes.append(4 if merge != "concat" else int(np.prod(shape)))
            found.append(data)
        shape = (sum(shapes) if merge == "concat" else 4,)
        if self.chance(0.6):
            names = self.names(count)
            return (
                as_dict(names, found),
                f"[layers.Inputs({as_dict(names, branches)}, merge={merge!r})]",
                shape,
            )
        return f"({', '.join(found)})", f"[layers.Inputs({', '.join(branches)}, merge={merge!r})]", shape

    def head(self, shape) -> tuple[str, str, str, str]:
        """Return the texts of a list of last layers, of a loss, a target, and a list of metrics."""
        last = []
        while len(shape) > 2 or (len(shape) > 1 and self.chance(0.6)):
            last.append(self.pick("layers.Flatten()", f"layers.GlobalAveragePooling{len(shape) - 1}D()"))
            shape = shape_after(last[-1], shape)
        kind = self.pick(
            "real", "real", "classes", "classes", "one hot", "labels", "counts", "signs", "shares"
        )
        units = self.between(2, 4) if kind in ("classes", "one hot", "shares") else self.between(1, 4)
        activation = {
            "classes": "softmax",
            "one hot": "softmax",
            "shares": "softmax",
            "labels": "sigmoid",
            "counts": "softplus",
        }.get(kind)
        logits = kind in ("classes", "one hot", "labels") and self.chance(0.3)
        last.append(f"layers.Dense({units}, {None if logits else activation!r})")
        samples, values = (
            f"(N, {''.join(f'{n}, ' for n in shape[:-1])})",
            f"(N, {''.join(f'{n}, ' for n in shape[:-1])}{units})",
        )

        def entropy(name, **optional):
            given = ("from_logits=True",) if logits else ()
            return f"losses.{name}({self.arguments(*given, **optional)})"

        if kind == "real":
            target, found = (
                f"rng.normal(size={values})",
                ["'mae'", "'mse'", "metrics.RootMeanSquaredError()", "metrics.R2Score()"],
            )
            loss = self.pick("'mse'", "'mae'", "'log_cosh'", "losses.Huber(0.7)", "losses.Quantile(0.3)")
            if self.with_own and self.chance(0.25):
                loss = self.pick("own.WritesLoss()", *["own.GrowingLoss()"] * self.leaves_rules)
                found += ["own.WritesMetric()", *["own.CountingMetric()"] * self.leaves_rules]
        elif kind == "counts":
            target, loss, found = f"rng.integers(0, 4, {values})", "'poisson'", ["'mae'"]
        elif kind == "signs":
            target, loss, found = (
                f"rng.integers(0, 2, {values})",
                self.pick("'hinge'", "'squared_hinge'"),
                ["'mse'"],
            )
        elif kind == "labels":
            target, loss = f"rng.integers(0, 2, {values})", entropy("BinaryCrossentropy", label_smoothing=0.1)
            if self.chance(0.4):
                gamma = self.pick(0.0, 1.0, 2.5)
                loss = entropy(
                    "BinaryFocalCrossentropy", gamma=gamma, apply_class_balancing=True, label_smoothing=0.1
                )
            found = [
                "'accuracy'",
                "metrics.AUC()",
                "metrics.Precision()",
                "metrics.Recall(average='macro')",
                "'f1'",
            ]
        elif kind == "classes":
            target, loss = f"rng.integers(0, {units}, {samples})", entropy("SparseCategoricalCrossentropy")
            found = ["'accuracy'", "metrics.SparseTopKCategoricalAccuracy(2)"]
        else:
            target = f"rng.dirichlet(np.ones({units}), {samples})"
            if kind == "one hot" and self.chance(0.5):
                target = f"np.eye({units})[rng.integers(0, {units}, {samples})]"
            loss, found = "'kld'", ["'mse'"]
            if kind == "one hot":
                name = self.pick("CategoricalCrossentropy", "CategoricalFocalCrossentropy")
                loss, found = (
                    entropy(name, label_smoothing=0.1),
                    ["'accuracy'", "metrics.TopKCategoricalAccuracy(2)"],
                )
        found = self.random.sample(found, self.between(0, min(2, len(found))))
        if "own.GrowingLoss()" in loss or "own.CountingMetric()" in found:
            self.is_portable = False
        return f"[{', '.join(last)}]", loss, target, f"[{', '.join(found)}]"

    def rate(self) -> str:
        rate = self.pick(0.003, 0.01, 0.05)
        found = self.pick(
            f"ExponentialDecay({rate}, 3, 0.7, staircase={self.chance(0.5)})", f"CosineDecay({rate}, 7, alpha=0.1)",
            f"Warmup(3, {rate})", f"OneCycle({rate}, 9)", f"PiecewiseConstantDecay([2, 5], [{rate}, 0.004, 0.002])",
            f"PolynomialDecay({rate}, 6, power=2.0, cycle=True)", f"CosineDecayRestarts({rate}, 2)",
            f"StepDecay({rate}, 2, 0.5)", "",
        )  # fmt: skip
        if self.chance(0.5):
            return str(rate)
        if not found:
            self.can_be_saved = False
            return f"lambda step: {rate} / (1 + step)"
        return f"schedules.{found}"

    def optimizer(self) -> str:
        name = self.pick(*OPTIMIZERS)
        if name == "own.SignedMean" and not self.with_own:
            name = "optimizers.SGD"
        self.is_smooth = name != "optimizers.Lion"
        clip = self.pick({}, {"clipnorm": 0.3}, {"clipvalue": 0.05}, {"global_clipnorm": 0.5})
        return f"{name}({self.arguments(self.rate(), **OPTIMIZERS[name], weight_decay=0.05, **clip)})"

    def fit(self, count: int, with_classes: bool) -> str:
        """Return the settings of a fit."""
        batch = max(self.pick(1, 3, 5, 8, 8, 16, count, 100), count // 12)
        settings = [f"batch_size={batch}", f"epochs={self.between(1, 3)}", "verbose=0"]
        if self.chance(0.4):
            settings.append("shuffle=False")
        if self.chance(0.3):
            settings.append("validation_split=0.2")
        if self.chance(0.35):
            settings.append("sample_weight=rng.uniform(0.0, 2.0, N)")
        if with_classes and self.chance(0.5):
            settings.append("class_weight={0: 0.5, 1: 2.0}")
        return f"dict({', '.join(settings)})"

    def changes(self, network: str, optimizer: str) -> list[str]:
        """Return the lines that change settings between two fits."""
        if self.chance(0.6):
            return ["    pass"]
        lines = [f"    model.optimizer.learning_rate = {self.pick(0.002, 0.02)}"]
        for cls, name, value in CHANGES:
            has_it = f"{cls}(" in network if cls else re.search(rf"\b{name}=", optimizer)
            if has_it and self.chance(0.7):
                lines.append(
                    f"    for layer in every(model.network, {cls}):\n        layer.{name} = {value}" if cls
                    else f"    model.optimizer.{name} = {value}"
                )  # fmt: skip
        return lines


def shape_after(layer: str, shape) -> tuple:
    """Return the shape of an output of a layer, given as text."""
    return eval(layer, SPACE).init(nnx.random.generator(0), shape)[1]


def as_dict(names, values) -> str:
    """Return the text of a dict of texts."""
    return f"{{{', '.join(f'{name!r}: {value}' for name, value in zip(names, values, strict=True))}}}"


def joined(*lists: str) -> str:
    """Return the text of a list of what several lists, given as texts, have."""
    return f"[{', '.join(text[1:-1] for text in lists if text != NO_LAYERS)}]"


def named(layer: str, name: str) -> str:
    """Return the text of a layer that has a name."""
    return f"{layer[:-1]}{'' if layer[-2] == '(' else ', '}name={name!r})"


def text(seed: int, with_own: bool = True) -> str:
    """Return the program of a seed, with layers of `own_layers` or with those of nnx alone."""
    draw = Draw(seed, with_own)
    count, several = draw.pick(7, 20, 37, 50), draw.chance(0.2)
    data, first, shape = draw.inputs() if draw.chance(0.2) else draw.input()
    body, shape = draw.layers(shape, draw.between(0, 4), 0)
    heads = [draw.head(shape) for _ in range(draw.between(2, 3) if several else 1)]
    last, loss, target, asked = heads[0]
    factors = ""
    if several:
        names = draw.names(len(heads)) if draw.chance(0.6) else None
        lists = [
            as_dict(names, part) if names else f"[{', '.join(part)}]" for part in zip(*heads, strict=True)
        ]
        last, loss, target, asked = lists
        last = f"[layers.Outputs({last if names else last[1:-1]})]"
        if draw.chance(0.4):
            values = [str(draw.pick(0.5, 1.0, 2.0)) for _ in heads]
            listed = as_dict(names, values) if names else f"[{', '.join(values)}]"
            factors = f", loss_weights={listed}"
    network, optimizer = joined(first, body, last), draw.optimizer()
    with_classes = not several and "SparseCategorical" in loss and len(shape) == 1
    return "\n".join([
        HEAD.format(seed=seed, count=count),
        f"X = {data}",
        f"Y = {target}",
        f"FIT = {draw.fit(count, with_classes)}",
        f"IS_PORTABLE, IS_SMOOTH, CAN_BE_SAVED = {draw.is_portable}, {draw.is_smooth}, {draw.can_be_saved}",
        "",
        "",
        'def model(dtype="float64"):',
        f"    made = nnx.Sequential({network}, seed={seed % 1000}, dtype=dtype)",
        f"    made.compile({optimizer}, {loss}{factors}, metrics={asked})",
        "    return made",
        "",
        "",
        "def every(layer, cls):",
        "    found = [layer] if isinstance(layer, cls) else []",
        "    return found + [one for inner in layer.sublayers().values() for one in every(inner, cls)]",
        "",
        "",
        "def change(model):",
        *draw.changes(network, optimizer),
        "",
        "",
        "def fit(model):",
        f"    return model.fit(X, Y, callbacks=[{'own.TurnsDown()' * ('ReadsSettings' in network)}], **FIT).history",
        "",
        "",
        'if __name__ == "__main__":',
        "    trained = model()",
        "    print(fit(trained))",
        "    change(trained)",
        "    print(fit(trained))",
        "",
    ])  # fmt: skip


# Running


def numpy(compiled: bool, numba: bool = False) -> nnx.Backend:
    """Return a NumPy backend of its own, whose new memory is full of nan."""
    backend = numpy_backend.NumpyBackend()
    backend.replays, backend.empty = compiled, full_of_nan(np.empty)
    backend.fusion = fusion.Fusion(numba, empty=backend.empty)
    return backend


@contextlib.contextmanager
def blocks_of(size: int):
    """Let kernels of more than so many elements run in blocks, or compiled by Numba."""
    before = fusion.BLOCK
    try:
        numpy_backend.BLOCK = fusion.BLOCK = size
        yield
    finally:
        numpy_backend.BLOCK = fusion.BLOCK = before


def from_its_file(model):
    """Return the model, saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.nnx")
        return nnx.load(Path(folder) / "model.nnx", backend=model.backend)


def back_from_jax(model):
    """Return the model after a visit to JAX."""
    backend = model.backend
    return model.to("jax").to(backend)


def load(program: str) -> dict:
    """Return what a program defines."""
    space: dict = {"__name__": "random_network"}
    exec(compile(program, "random network", "exec"), space)
    return space


def run(program: str, backend, dtype="float64", between=lambda model: model) -> dict:
    """Return all numbers of a program's training by name, or what it raised under "error".

    `between` is called after the first fit, on the model, and returns that to go on with.
    """
    space, found = load(program), {}
    try:
        with warnings.catch_warnings(), nnx.use_backend(backend):
            warnings.simplefilter("ignore")
            model = space["model"](dtype)
            for number in range(2):
                found |= {f"fit {number}, {name}": values for name, values in space["fit"](model).items()}
                found |= {f"fit {number}, weight {k}": weight for k, weight in enumerate(model.get_weights())}
                if number == 0:
                    space["change"](model)
                    model = between(model)
            logs = model.evaluate(space["X"], space["Y"], batch_size=6, verbose=0, return_dict=True)
            found |= {f"evaluated {name}": value for name, value in logs.items()}
            output = model.predict(space["X"], batch_size=9, verbose=0)
            outputs = tree.leaves(output) if isinstance(output, dict) else output
            outputs = outputs if isinstance(outputs, (list, tuple)) else [output]
            found |= {f"output {k}": leaf for k, leaf in enumerate(outputs)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {name: np.asarray(value) for name, value in found.items()}


def differences(found: dict, expected: dict, tolerance: float = 0.0) -> list[str]:
    """Return a line for each array that is not the same, to `tolerance` relative to its largest element."""
    if "error" in found or "error" in expected:
        a, b = (run.get("error", "none").partition("\n")[0] for run in (found, expected))
        return [] if a == b else [f"error: {a}; expected: {b}"]
    if found.keys() != expected.keys():
        return [f"names: {sorted(found.keys() ^ expected.keys())}"]
    lines = []
    for name, right in expected.items():
        value = found[name]
        if (value.shape, value.dtype) != (right.shape, right.dtype):
            lines.append(f"{name}: {value.dtype}{value.shape}, expected {right.dtype}{right.shape}")
        elif not np.array_equal(value, right, equal_nan=True):
            scale = np.max(np.abs(right), initial=1.0, where=np.isfinite(right))
            far = ~np.isclose(value, right, rtol=0.0, atol=tolerance * scale, equal_nan=True)
            if far.any():
                k = tuple(map(int, np.argwhere(far)[0]))
                lines.append(f"{name}{list(k) if k else ''}: {value[k]!r}, expected {right[k]!r}")
    return lines
