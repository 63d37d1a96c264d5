"""Patches of a convolution, and the gradient of what they were cut from, by one launch each.

A thread that forms patches takes one channel of one window, finds its place once and copies all
elements. A thread that goes back takes one element of the input and adds up what the windows that hold
it give: each place is written by one thread, so that nothing is atomic and sums have one order.
"""

import functools

GEOMETRY = (
    "height", "width", "rows", "columns", "size_0", "size_1", "stride_0", "stride_1", "step_0", "step_1",
    "before_0", "before_1",
)  # fmt: skip

PATCHES = """
    I rest = i;
    const I channel = rest % channels; rest /= channels;
    const I column = rest % columns; rest /= columns;
    const I row = rest % rows, sample = rest / rows;
    I to = (i - channel) * size_0 * size_1 + channel;
    for (I a = 0; a < size_0; ++a) {
        const I y = row * stride_0 + a * step_0 - before_0;
        for (I b = 0; b < size_1; ++b, to += channels) {
            const I z = column * stride_1 + b * step_1 - before_1;
            const I from[] = {sample, y, z, channel};
            patches[to] = y >= 0 && y < height && z >= 0 && z < width ? x[from] : T(0.0f);
        }
    }
"""

FROM_PATCHES = """
    I rest = i;
    const I channel = rest % channels; rest /= channels;
    const I z = rest % width + before_1; rest /= width;
    const I y = rest % height + before_0, sample = rest / height;
    S sum = 0;
    for (I a = 0; a < size_0; ++a) {
        const I down = y - a * step_0, row = down / stride_0;
        if (down < 0 || row >= rows || row * stride_0 != down) continue;
        for (I b = 0; b < size_1; ++b) {
            const I along = z - b * step_1, column = along / stride_1;
            if (along < 0 || column >= columns || column * stride_1 != along) continue;
            const I window = (sample * rows + row) * columns + column;
            sum += (S)patches[((window * size_0 + a) * size_1 + b) * channels + channel];
        }
    }
    x = (T)sum;
"""


def geometry(windows) -> tuple[int, ...]:
    """Return the numbers that GEOMETRY names; one axis is given another before it, of length 1."""

    def two(lengths, length=1):
        return [*[length] * (2 - len(lengths)), *lengths]

    before = two([before for before, _ in windows.padding], 0)
    spaced = *two(windows.size), *two(windows.strides), *two(windows.dilation), *before
    return *two(windows.spatial), *two(windows.counts), *spaced


class WindowKernels:
    """Both kernels, compiled for each dtype when first called."""

    def __init__(self, cupy):
        self.cupy = cupy
        self._compiled = functools.cache(self._compile)

    def patches(self, x, shape, numbers):
        """Return patches, of shape (batch, *counts, elements * channels), of x."""
        found, channels = self.cupy.empty(shape, x.dtype), x.shape[-1]
        kernel = self._kernel("patches", found.size, x.dtype)
        threads = found.size * channels // max(shape[-1], 1)
        return kernel(x if x.ndim == 4 else x[:, None], channels, *numbers, found, size=threads)

    def from_patches(self, gradients, shape, numbers):
        """Return the gradient of an input of shape (batch, *spatial, channels)."""
        found = self.cupy.empty(shape, gradients.dtype)
        kernel = self._kernel("from_patches", max(found.size, gradients.size), found.dtype)
        return kernel(gradients, shape[-1], *numbers, found)

    def _kernel(self, name, size, dtype):
        index = "int" if size < 2**31 else "long long"  # 64-bit division is slow on a GPU
        return self._compiled(name, index, "double" if dtype.itemsize == 8 else "float")

    def _compile(self, name, index, precise):
        number = "int32" if index == "int" else "int64"
        numbers = ", ".join(f"{number} {name}" for name in ("channels", *GEOMETRY))
        types = f"typedef {index} I; typedef {precise} S;"
        given, made, text = {
            "patches": (f"raw T x, {numbers}", "raw T patches", PATCHES),
            "from_patches": (f"raw T patches, {numbers}", "T x", FROM_PATCHES),
        }[name]
        return self.cupy.ElementwiseKernel(given, made, text, f"nnx_{name}", preamble=types)
