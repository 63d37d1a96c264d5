"""Patches of a convolution, and the gradient of the input from the gradients of patches, in one launch each.

Forward, a thread copies all elements of one channel of one window. Backward, a thread sums the gradients of
one element of the input over the windows that contain it: each element is written by one thread, so there
are no atomic additions, and sums have a fixed order.
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
    """Return the values that GEOMETRY names; a single spatial axis gets another of length 1 before it."""

    def two(lengths, length=1):
        return [*[length] * (2 - len(lengths)), *lengths]

    before = two([before for before, _ in windows.padding], 0)
    spaced = *two(windows.size), *two(windows.strides), *two(windows.dilation), *before
    return *two(windows.spatial), *two(windows.counts), *spaced


class WindowKernels:
    """Both kernels, compiled for each dtype at the first call."""

    def __init__(self, cupy):
        self.cupy = cupy
        self._compiled = functools.cache(self._compile)

    def patches(self, x, shape, geometry):
        """Return patches, of shape (batch, *counts, elements * channels), of x."""
        patches, channels = self.cupy.empty(shape, x.dtype), x.shape[-1]
        kernel = self._kernel("patches", patches.size, x.dtype)
        threads = patches.size * channels // max(shape[-1], 1)
        return kernel(x if x.ndim == 4 else x[:, None], channels, *geometry, patches, size=threads)

    def from_patches(self, gradients, shape, geometry):
        """Return the gradient of an input of shape (batch, *spatial, channels)."""
        dx = self.cupy.empty(shape, gradients.dtype)
        kernel = self._kernel("from_patches", max(dx.size, gradients.size), dx.dtype)
        return kernel(gradients, shape[-1], *geometry, dx)

    def _kernel(self, name, size, dtype):
        index = "int" if size < 2**31 else "long long"  # 64-bit division is slow on a GPU
        return self._compiled(name, index, "double" if dtype.itemsize == 8 else "float")

    def _compile(self, name, index, precise):
        dtype = "int32" if index == "int" else "int64"
        scalars = ", ".join(f"{dtype} {name}" for name in ("channels", *GEOMETRY))
        types = f"typedef {index} I; typedef {precise} S;"
        inputs, output, text = {
            "patches": (f"raw T x, {scalars}", "raw T patches", PATCHES),
            "from_patches": (f"raw T patches, {scalars}", "T x", FROM_PATCHES),
        }[name]
        return self.cupy.ElementwiseKernel(inputs, output, text, f"nnx_{name}", preamble=types)
