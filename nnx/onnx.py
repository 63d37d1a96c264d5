"""Models as ONNX files, which ONNX Runtime and many other programs run.

nnx.onnx.export(model, "net.onnx")

There is no converter for each layer. The model is run once on symbols, which note each array operation
of every layer, one's own layers included, and one table says what each operation is in ONNX.
Needs the package onnx: pip install 'nnx-engine[onnx]'.
"""

import importlib.util
from typing import Any

from nnx.export import ExportError
from nnx.saving import files
from nnx.threads import reading

__all__ = ["ExportError", "as_onnx", "export"]

OPSET, IR_VERSION = 18, 8
"""Versions of ONNX's operations and of its files: of December 2022."""


def export(model, path) -> None:
    """Write a model for inference to an ONNX file, for batches of any size.

    The inputs and outputs have the names that the model gives them (`layers.Inputs` and `layers.Outputs`
    of dicts), else `input` and `output`, or `input_0`, `input_1`, ...; their first axis is called `batch`.
    A model that computes in half precision is written in float32, in which its weights are.

    Parameters
    ----------
    model : Model
        Built, on any backend; it is not changed.
    path : str or Path
        The whole new file appears there, or the old one stays.

    Raises
    ------
    ExportError
        If a layer cannot be exported; the message names it.

    Examples
    --------
    >>> import nnx, numpy as np, onnxruntime, os, tempfile
    >>> model = nnx.Sequential([nnx.layers.Dense(2, kernel_initializer="ones", input_shape=(3,))])
    >>> path = os.path.join(tempfile.mkdtemp(), "net.onnx")
    >>> nnx.onnx.export(model, path)
    >>> x = np.array([[1, 2, 3], [4, 5, 6]], dtype="float32")
    >>> onnxruntime.InferenceSession(path).run(None, {"input": x})
    [array([[ 6.,  6.],
            [15., 15.]], dtype=float32)]
    """
    files.write_whole(path, as_onnx(model).SerializeToString())


def as_onnx(model) -> Any:
    """Return a model as an `onnx.ModelProto` that `onnx.checker` has checked; see `export`."""
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("nnx.onnx needs the package onnx: pip install 'nnx-engine[onnx]'")
    import onnx

    from nnx import __version__
    from nnx.export.onnx_nodes import Nodes
    from nnx.export.trace import trace

    with reading(model):
        graph = Nodes(trace(model)).graph(model.name)
    found = onnx.helper.make_model(
        graph,
        producer_name="nnx",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(found, full_check=True)
    return found
