"""Convolutions in ONNX: `Conv` and `ConvTranspose` in place of products of patches with a matrix.

ONNX has channels first: the axes are transposed before and after.
"""

import numpy as np

from nnx.export.onnx_writer import GraphWriter
from nnx.graph.graph import Symbol


class WindowWriter(GraphWriter):
    """Writes operations on sliding windows."""

    def fused(self, symbols):
        return _fused(symbols)

    def convolution(self, symbol: Symbol) -> str:
        """Return the product of patches with a matrix, (batch * windows, filters)."""
        rows, matrix = symbol.arguments
        x, windows = rows.arguments[0].arguments
        name = self._conv(x, windows, matrix, symbol.dtype)
        return self.emit("Reshape", name, self.integers([-1, matrix.shape[1]]))

    def _op_patches(self, symbol, x, windows):
        return self._conv(x, windows, np.eye(symbol.shape[-1], dtype=symbol.dtype), symbol.dtype)

    def _conv(self, x: Symbol, windows, matrix, dtype) -> str:
        kernel = np.asarray(matrix, dtype).reshape((*windows.size, x.shape[-1], -1))
        rank = len(windows.size)
        kernel = self.constant(np.moveaxis(kernel, (-1, -2), (0, 1)), self._kernel_name(matrix))
        name = self.emit("Conv", self._channels_first(self.value(x, dtype), rank), kernel, **_window(windows))
        return self._channels_last(name, rank)

    def _op_from_patches(self, symbol, gradients, windows):
        rows, channels, rank = gradients, symbol.shape[-1], len(windows.size)
        if _is_product(gradients):
            rows, matrix = gradients.arguments[0].arguments
            shape = self.integers([-1, *windows.counts, matrix.shape[0]])
            name = self.emit("Reshape", self.value(rows, symbol.dtype), shape)
        else:
            name, matrix = self.value(rows, symbol.dtype), np.eye(rows.shape[-1])
        kernel = np.asarray(matrix, symbol.dtype).reshape((-1, *windows.size, channels))
        kernel = self.constant(np.moveaxis(kernel, -1, 1), self._kernel_name(matrix))
        axes = zip(
            windows.spatial, windows.padding, windows.counts, windows.strides, windows.reach, strict=True
        )
        extra = [n + sum(pad) - (count - 1) * stride - length for n, pad, count, stride, length in axes]
        name = self._channels_first(name, rank)
        name = self.emit("ConvTranspose", name, kernel, output_padding=extra, **_window(windows))
        return self._channels_last(name, rank)

    def _kernel_name(self, matrix) -> str:
        try:
            return self.program.weight_name(matrix)
        except KeyError:  # an identity matrix
            return f"{self.path}/ones"

    def _channels_first(self, name: str, rank: int) -> str:
        return self.emit("Transpose", name, perm=[0, rank + 1, *range(1, rank + 1)])

    def _channels_last(self, name: str, rank: int) -> str:
        return self.emit("Transpose", name, perm=[0, *range(2, rank + 2), 1])


def _window(windows) -> dict:
    """Return the attributes of a convolution."""
    pads = [before for before, _ in windows.padding] + [after for _, after in windows.padding]
    return {
        "kernel_shape": list(windows.size),
        "strides": list(windows.strides),
        "dilations": list(windows.dilation),
        "pads": pads,
    }


def is_convolution(symbol: Symbol) -> bool:
    """Whether this is a product of patches with a matrix of weights."""
    rows, matrix = symbol.arguments
    return (
        isinstance(matrix, np.ndarray)
        and matrix.ndim == 2
        and isinstance(rows, Symbol)
        and rows.op == "reshape"
        and isinstance(rows.arguments[0], Symbol)
        and rows.arguments[0].op == "patches"
        and rows.ndim == 2
    )


def _is_product(gradients) -> bool:
    """Whether these patches are the product of rows with a matrix of weights."""
    product = gradients.arguments[0] if isinstance(gradients, Symbol) and gradients.op == "reshape" else None
    return (
        isinstance(product, Symbol)
        and product.op == "matmul"
        and isinstance(product.arguments[0], Symbol)
        and product.arguments[0].ndim == 2
        and isinstance(product.arguments[1], np.ndarray)
    )


def _fused(symbols: list[Symbol]) -> set[Symbol]:
    """Return the Symbols that a convolution includes: they are written only for other users."""
    fused = set()
    for symbol in symbols:
        if symbol.op == "patches" or (symbol.op == "reshape" and symbol.arguments[0].op == "patches"):
            fused.add(symbol)
        elif symbol.op == "from_patches" and _is_product(symbol.arguments[0]):
            fused |= {symbol.arguments[0], symbol.arguments[0].arguments[0]}
        elif symbol.op == "scan":
            fused |= _fused(symbol.settings["body"])
    return fused
