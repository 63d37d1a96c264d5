"""Models written down for use without nnx: what they compute, as a graph of array operations.

`graph` notes the operations while a model runs, `trace` makes sure that they hold for batches of any
size, and `onnx_nodes` and `numpy_module` write them in another language, each from one table.

May import: core, graph, layers, saving, NumPy.
"""

from nnx.export.trace import ExportError

__all__ = ["ExportError"]
