"""Recorded kernels as CUDA: one launch for any pure elementwise function.

The recorded operations (`nnx.graph.recording`) become the body of a CuPy `ElementwiseKernel`, each in the
dtype of NumPy's promotion rules. relu(x + b), for example, is

    const float v2 = v0 + v1;
    const float v3 = v2 >= 0.0f || v2 != v2 ? v2 : 0.0f;
    r0 = v3;
"""

import math
import re

import numpy as np

from nnx.graph.recording import NotRecordableError, RecordedKernel, Value, cast, resolve, where_into

TEMPLATES = {
    np.add: "{} + {}",
    np.subtract: "{} - {}",
    np.multiply: "{} * {}",
    np.true_divide: "{} / {}",
    np.negative: "-{}",
    np.square: "{0} * {0}",
    np.reciprocal: "1 / {}",
    np.sqrt: "sqrt({})",
    np.abs: "{0} < 0 ? -{0} : {0} + 0",  # + 0 makes -0 positive
    np.sign: "{0} != {0} ? {0} : ({0} > 0) - ({0} < 0)",
    np.exp: "exp({})",
    np.expm1: "expm1({})",
    np.log: "log({})",
    np.log1p: "log1p({})",
    np.tanh: "tanh({})",
    np.sin: "sin({})",
    np.cos: "cos({})",
    np.floor: "floor({})",
    np.power: "pow({}, {})",
    # As in NumPy, a nan stays nan.
    np.maximum: "{0} >= {1} || {0} != {0} ? {0} : {1}",
    np.minimum: "{0} <= {1} || {0} != {0} ? {0} : {1}",
    np.greater: "{} > {}",
    np.greater_equal: "{} >= {}",
    np.less: "{} < {}",
    np.less_equal: "{} <= {}",
    np.equal: "{} == {}",
    np.not_equal: "{} != {}",
    np.logical_and: "{} && {}",
    np.logical_or: "{} || {}",
    np.logical_not: "!{}",
    np.isnan: "{0} != {0}",
    np.bitwise_and: "{} & {}",
    np.bitwise_or: "{} | {}",
    np.bitwise_xor: "{} ^ {}",
    np.right_shift: "{} >> {}",
    np.left_shift: "{} << {}",
    cast: "{}",
    where_into: "{} ? {} : {}",
}

# CUDA passes 4 KB of arguments to a kernel; an array of four axes takes 80 bytes of them.
MOST_ARGUMENTS = 40

# Arithmetic in half precision is done in float and rounded, as in NumPy.
_C_TYPES = {
    "float16": "float", "bfloat16": "float", "float32": "float", "float64": "double", "bool": "bool",
    "int8": "signed char", "int16": "short", "int32": "int", "int64": "long long",
    "uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int", "uint64": "unsigned long long",
}  # fmt: skip


class CudaKernel:
    """A recorded kernel, compiled when it is first called.

    Parameters
    ----------
    cupy : module
    recorded : RecordedKernel
        With all arrays cut, so that its setup computes Python scalars on the host.
    kinds : sequence of dtype or type
        The dtypes of array arguments and the types of Python scalars.
    into : tuple of int or None
        For each result, the index of the argument that it overwrites.
    name : str
        The name that a profiler shows.
    """

    def __init__(self, cupy, recorded: RecordedKernel, kinds, into: tuple, name: str = "kernel"):
        dtypes = dict(enumerate(kinds)) | {op.result: op.dtype for op in (*recorded.setup, *recorded.body)}
        self.recorded, self.into = recorded, into
        self.result_dtypes = [dtypes[value] for value in recorded.results]
        read = {int(v) for op in recorded.body for v in op.arguments if isinstance(v, Value)} | {
            *recorded.results
        }
        self.read = sorted(v for v in read if v < len(kinds) or v in {op.result for op in recorded.setup})
        if len(self.read) + len(recorded.results) > MOST_ARGUMENTS:
            raise NotRecordableError(f"{len(self.read)} arguments")
        inputs = [f"{_parameter(dtypes[v])} a{v}" for v in self.read]
        outputs = [f"{dtypes[v].name} r{k}" for k, v in enumerate(recorded.results)]
        body = [_statement(op, dtypes) for op in recorded.body]
        body = [f"const {_c_type(dtypes[v])} v{v} = a{v};" for v in self.read] + body
        body += [f"r{k} = v{v};" for k, v in enumerate(recorded.results)]
        self.text = "\n".join(body)
        name = "nnx_" + re.sub(r"\W+", "_", name).strip("_").lower()
        self._kernel = cupy.ElementwiseKernel(", ".join(inputs), ", ".join(outputs), self.text, name)

    def __call__(self, *arguments):
        """Return the result, or the tuple of results."""
        values = dict(enumerate(arguments))
        for op in self.recorded.setup:
            given = [values[int(v)] if isinstance(v, Value) else v for v in op.arguments]
            values[op.result] = op.dtype(op.function(*given))
        targets = [arguments[target] for target in self.into if target is not None]
        return self._kernel(*(values[v] for v in self.read), *targets)


def _parameter(dtype) -> str:
    """Return CuPy's name of the type of an argument; a Python scalar has 64 bits."""
    return dtype.name if isinstance(dtype, np.dtype) else {int: "int64", float: "float64"}[dtype]


def _c_type(dtype) -> str:
    name = _parameter(dtype)
    if name not in _C_TYPES:
        raise NotRecordableError(name)
    return _C_TYPES[name]


def _statement(op, dtypes) -> str:
    """Return one operation as a statement, with its arguments converted as NumPy does."""
    if op.function not in TEMPLATES:
        raise NotRecordableError(op.function)
    within = _dtype_within(op, dtypes)
    given = [_operand(value, dtypes, within) for value in op.arguments]
    if op.function is where_into:
        given[0] = _operand(op.arguments[0], dtypes, np.dtype(bool))
    value, type_ = TEMPLATES[op.function].format(*given), _c_type(op.dtype)
    if op.dtype.name in ("float16", "bfloat16"):
        value = f"(float)({op.dtype.name})({value})"
    return f"const {type_} v{op.result} = ({type_})({value});"


def _dtype_within(op, dtypes) -> np.dtype:
    """Return the dtype that the arguments of an operation are converted to."""
    if op.function in (cast, where_into):
        return op.dtype if op.function is where_into else dtypes[int(op.arguments[0])]
    kinds = [dtypes[int(v)] if isinstance(v, Value) else type(v) for v in op.arguments]
    return resolve(op.function, kinds)[0]


def _operand(value, dtypes, dtype) -> str:
    """Return the text of a value or scalar, converted to `dtype`."""
    type_ = _c_type(dtype)
    if isinstance(value, Value):
        return f"v{int(value)}" if dtypes[int(value)] == dtype else f"({type_})v{int(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        raise NotRecordableError(value)
    return f"({type_}){value!r}" if not isinstance(value, bool) else str(value).lower()
