"""Networks of other layers than dense ones, in nnx and in PyTorch, for the same passes as in `networks`.

A case is its layers, which the forward and backward pass goes through, and a head that makes logits of
their output for train steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

import nnx

from . import networks
from .peers import CORES, RATE, installed


@dataclass(frozen=True)
class Architecture:
    """A network, what goes into it, and the same in PyTorch."""

    name: str
    in_shape: tuple[int, ...]
    batch: int
    body: Callable[[], list[nnx.layers.Layer]]
    torch_body: Callable
    """Returns PyTorch's module of `body`, which takes (batch, *in_shape)."""
    head: Callable[[], list[nnx.layers.Layer]] = list
    torch_head: Callable | None = None
    classes: int = 10

    def model(self, backend, dtype="float32") -> nnx.Sequential:
        """Return the network as a compiled model: Adam and the cross-entropy of its logits."""
        model = nnx.Sequential([*self.body(), *self.head()], seed=0, dtype=dtype, backend=backend)
        model.build(self.in_shape)
        loss = nnx.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=nnx.optimizers.Adam(RATE), loss=loss)
        return model

    def data(self, samples: int, dtype="float32") -> tuple[np.ndarray, np.ndarray]:
        """Return random samples and classes."""
        rng = np.random.default_rng(0)
        return rng.standard_normal((samples, *self.in_shape), dtype), rng.integers(self.classes, size=samples)


def convolutions() -> list[nnx.layers.Layer]:
    """Return two convolutions, 32 and 64 filters of 3 x 3."""
    return [nnx.layers.Conv2D(32, 3, activation="relu"), nnx.layers.Conv2D(64, 3, activation="relu")]


def torch_convolutions():
    """Return the same for images with their channels last."""
    import torch

    class Body(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    first, second = torch.nn.Conv2d(1, 32, 3), torch.nn.Conv2d(32, 64, 3)
    return Body(first, torch.nn.ReLU(), second, torch.nn.ReLU()).to(memory_format=torch.channels_last)


def pooled_logits() -> list[nnx.layers.Layer]:
    """Return the mean over all places, and a dense layer."""
    return [nnx.layers.GlobalAveragePooling2D(), nnx.layers.Dense(10)]


def torch_pooled_logits():
    """Return the same in PyTorch."""
    import torch

    class Head(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.mean(dim=(1, 2)))

    return Head(64, 10)


def lstm() -> list[nnx.layers.Layer]:
    """Return an LSTM of 64 units that gives its last output."""
    return [nnx.layers.LSTM(64)]


def torch_lstm():
    """Return the same in PyTorch."""
    return _torch_recurrent("LSTM")


def gru() -> list[nnx.layers.Layer]:
    """Return a GRU of 64 units that gives its last output."""
    return [nnx.layers.GRU(64)]


def torch_gru():
    """Return the same in PyTorch."""
    return _torch_recurrent("GRU")


def _torch_recurrent(name):
    import torch

    class Last(getattr(torch.nn, name)):
        def forward(self, x):
            return super().forward(x)[0][:, -1]

    return Last(32, 64, batch_first=True)


def transformer() -> list[nnx.layers.Layer]:
    """Return a causal transformer block of 4 heads that normalises first."""
    return [nnx.layers.TransformerBlock(4, 256, activation="relu", norm_first=True, use_causal_mask=True)]


def torch_transformer():
    """Return the same in PyTorch."""
    import torch

    class Causal(torch.nn.TransformerEncoderLayer):
        def forward(self, x):
            mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return super().forward(x, src_mask=mask, is_causal=True)

    return Causal(64, 4, 256, dropout=0.0, batch_first=True, norm_first=True)


def averaged_logits() -> list[nnx.layers.Layer]:
    """Return the mean over time steps, and a dense layer."""
    return [nnx.layers.GlobalAveragePooling1D(), nnx.layers.Dense(10)]


def torch_averaged_logits():
    """Return the same in PyTorch."""
    import torch

    class Head(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.mean(dim=1))

    return Head(64, 10)


def logits() -> list[nnx.layers.Layer]:
    """Return a dense layer."""
    return [nnx.layers.Dense(10)]


def torch_logits():
    """Return the same in PyTorch."""
    import torch

    return torch.nn.Linear(64, 10)


CASES = [
    Architecture(
        "CNN, 28x28x1, 3x3 convolutions to 32 and 64 channels",
        (28, 28, 1),
        128,
        convolutions,
        torch_convolutions,
        pooled_logits,
        torch_pooled_logits,
    ),
    Architecture(
        "LSTM, 50 steps of 32 features, 64 units", (50, 32), 64, lstm, torch_lstm, logits, torch_logits
    ),
    Architecture(
        "GRU, 50 steps of 32 features, 64 units", (50, 32), 64, gru, torch_gru, logits, torch_logits
    ),
    Architecture(
        "Transformer block, 128 steps of 64 features, 4 heads",
        (128, 64),
        32,
        transformer,
        torch_transformer,
        averaged_logits,
        torch_averaged_logits,
    ),
]


def forward_and_backward(case: Architecture, backends) -> dict[str, Callable]:
    """Return functions that run both passes through the layers without head, loss and optimizer."""
    body = replace(case, head=list)
    runs = {f"nnx, {b.name}": networks.gradients(body, b, case.batch, 1) for b in backends}
    return runs | ({"PyTorch": _torch_gradients(case)} if installed("torch") else {})


def train_steps(case: Architecture, backends) -> dict[str, Callable]:
    """Return functions that take `networks.FEWEST` training steps; that of PyTorch returns the last loss."""
    runs = {f"nnx, {b.name}": networks.train(case, b, case.batch, networks.FEWEST) for b in backends}
    return runs | ({"PyTorch": _torch_steps(case)} if installed("torch") else {})


def _torch_gradients(case):
    import torch

    torch.set_num_threads(CORES)
    net, x = case.torch_body(), torch.from_numpy(case.data(case.batch)[0])
    dy = torch.randn_like(net(x))

    def run():
        net.zero_grad()
        net(x).backward(dy)

    return run


def _torch_steps(case):
    import torch

    torch.set_num_threads(CORES)
    net = torch.nn.Sequential(case.torch_body(), case.torch_head())
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
    x, y = map(torch.from_numpy, case.data(case.batch))

    def run():
        for _ in range(networks.FEWEST):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    return run
