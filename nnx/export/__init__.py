"""Export of models for use without nnx.

`graph.export_trace` records the array operations of a model as a graph that is valid for batches of any
size; `onnx_nodes` and `numpy_module` write the graph as ONNX or as Python, each from one table of operations.

May import: core, graph, saving, NumPy.
"""

from nnx.graph.export_graph import ExportError

__all__ = ["ExportError"]
