"""Export of models for use without nnx.

`trace` records the array operations of a model as a graph that is valid for batches of any
size; `onnx_nodes` and `numpy_module` write the graph as ONNX or as Python, each from one table of operations.

May import: core, graph, layers, saving, NumPy.
"""

from nnx.export.trace import ExportError

__all__ = ["ExportError"]
