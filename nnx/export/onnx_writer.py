"""A traced model as an ONNX graph: nodes, constants and loops. `onnx_nodes` has the operations."""

from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from nnx.export.trace import Batch, ModelGraph
from nnx.graph.graph import Symbol


def data_type(dtype) -> int:
    """Return the code of a dtype in ONNX."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class GraphWriter:
    """Writes a program as ONNX nodes."""

    def __init__(self, program: ModelGraph):
        self.program = program
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.names: dict[Any, str] = {}
        self.taken: set[str] = set()
        self.path = ""
        self.loops: dict[Symbol, dict[int, str]] = {}
        self._batch = ""

    def graph(self, title: str) -> GraphProto:
        """Return the whole graph."""
        program = self.program
        starts = [(self.unique(name), symbol) for name, symbol in program.inputs]
        self.names.update({symbol: name for name, symbol in starts})
        ends = [(self.unique(name), symbol) for name, symbol in program.outputs]
        self._batch = self.emit("Shape", self.names[program.inputs[0][1]], start=0, end=1, hint="batch")
        for (_, symbol), count in zip(program.inputs, program.categories, strict=True):
            if count is not None:
                self.names[symbol] = self._checked(self.names[symbol], symbol.dtype, count)
        self._late = self.fused(program.symbols)
        self.write(program.symbols)
        for name, symbol in ends:
            self.nodes.append(
                helper.make_node("Identity", [self.name(symbol)], [name], name=f"{name}/Identity")
            )
        inputs, outputs = ([self._info(name, symbol) for name, symbol in pairs] for pairs in (starts, ends))
        used = {name for node in _all_nodes(self.nodes) for name in node.input} | {o.name for o in outputs}
        nodes = [node for node in self.nodes if used & {*node.output}]
        used = {name for node in _all_nodes(nodes) for name in node.input}
        constants = [tensor for name, tensor in self.constants.items() if name in used]
        return helper.make_graph(nodes, title, inputs, outputs, constants)

    def _checked(self, indices: str, dtype, count: int) -> str:
        """Return category indices, with one for which Gather raises an error in place of each invalid index.

        ONNX has no operation that raises an error, and Gather takes -1 as the last category.
        """
        inside = self.emit(
            "Clip", indices, self.constant(dtype.type(0)), self.constant(dtype.type(count - 1))
        )
        invalid = self.constant(dtype.type(np.iinfo(dtype).max))
        return self.emit("Where", self.emit("Equal", inside, indices), indices, invalid)

    def write(self, symbols: list[Symbol]) -> None:
        """Write the nodes of some Symbols, except for those that are fused into another node."""
        for symbol in symbols:
            if symbol.op != "input" and symbol not in self._late:
                self.name(symbol)

    def name(self, symbol: Symbol) -> str:
        """Return the name of a Symbol's result; write its nodes if needed."""
        if symbol not in self.names:
            before, self.path = self.path, symbol.path
            self.names[symbol] = self.lower(symbol)
            self.path = before
        return self.names[symbol]

    # Nodes and constants

    def emit(self, op: str, *inputs: str, hint: str = "", **attributes) -> str:
        """Add a node and return the name of its result."""
        result = self.unique(f"{self.path}/{hint or op}".strip("/"))
        self.nodes.append(helper.make_node(op, list(inputs), [result], name=result, **attributes))
        return result

    def constant(self, array, hint: str = "") -> str:
        """Return the name of a constant array."""
        array = np.asarray(array, order="C")
        key = (hint, array.tobytes(), array.dtype, array.shape)
        if key not in self.names:
            wanted = hint or (str(array) if array.ndim == 0 else "constant")
            name = self.names[key] = self.unique(wanted)
            self.constants[name] = numpy_helper.from_array(array, name)
        return self.names[key]

    def integers(self, values) -> str:
        """Return the name of a vector of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def lengths(self, shape) -> str:
        """Return the name of a shape; its lengths may be multiples of the batch size."""
        if not any(isinstance(n, Batch) for n in shape):
            return self.integers(shape)
        return self.emit("Concat", *map(self._length, shape), axis=0)

    def _length(self, n) -> str:
        if not isinstance(n, Batch):
            return self.integers([n])
        return self._batch if n.times == 1 else self.emit("Mul", self._batch, self.integers([n.times]))

    def unique(self, wanted: str) -> str:
        """Return an unused name: this one, with a number if needed."""
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def _info(self, name: str, symbol: Symbol):
        shape = [
            n if not isinstance(n, Batch) else "batch" if n.times == 1 else f"{n.times} * batch"
            for n in self.program.shapes[symbol]
        ]
        return helper.make_tensor_value_info(name, data_type(symbol.dtype), shape)

    def value(self, value, dtype) -> str:
        """Return the name of an argument, converted to a dtype if it has another."""
        if isinstance(value, Symbol):
            name = self.name(value)
            return name if value.dtype == dtype else self.emit("Cast", name, to=data_type(dtype))
        if isinstance(value, (np.ndarray, np.generic)):
            hint = self.program.weight_name(value) if value.ndim else ""
            return self.constant(np.asarray(value, dtype), hint)
        return self.constant(np.asarray(value, dtype))

    # Operations

    def lower(self, symbol: Symbol) -> str:
        """Write the nodes of an operation, and return the name of its result."""
        raise NotImplementedError

    def fused(self, symbols: list[Symbol]) -> set[Symbol]:
        """Return the Symbols that are fused into other nodes: they are written only for other users."""
        return set()

    # Loops

    def _op_scan(self, loop, carry, xs, *, body, inputs, results, reverse):
        starts = [self.value(c, i.dtype) for c, i in zip(carry, inputs, strict=False)]
        rows = [self.value(x, i.dtype) for x, i in zip(xs, inputs[len(carry) :], strict=True)]
        for symbol in inputs:
            self.names[symbol] = self.unique(f"{self.path}/step")
        around, self.nodes = self.nodes, []
        self.write(body)
        states = [self.emit("Identity", self.value(r, r.dtype)) for r in results[: len(carry)]]
        read = [i for i, r in enumerate(results) if r is not None]
        stacked = [self.emit("Identity", self.value(results[i], results[i].dtype)) for i in read]
        ends = [*results[: len(carry)], *(results[i] for i in read)]
        graph = helper.make_graph(
            self.nodes,
            f"{self.path}/loop",
            [self._info(self.names[symbol], symbol) for symbol in inputs],
            [
                helper.make_tensor_value_info(name, data_type(r.dtype), None)
                for name, r in zip([*states, *stacked], ends, strict=True)
            ],
        )
        self.nodes = around
        last = [self.unique(f"{self.path}/last") for _ in states]
        steps = [self.unique(f"{self.path}/steps") for _ in stacked]
        self.nodes.append(
            helper.make_node(
                "Scan", [*starts, *rows], [*last, *steps], name=self.unique(f"{self.path}/Scan"), body=graph,
                num_scan_inputs=len(rows), scan_input_directions=[int(reverse)] * len(rows),
                scan_output_directions=[int(reverse)] * len(steps),
            )
        )  # fmt: skip
        self.loops[loop] = dict(zip(read, steps, strict=True))
        return ""

    def _op_item(self, symbol, loop, number):
        return self.loops[loop][number]


def _all_nodes(nodes):
    """Yield nodes and those of the bodies of loops."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g.node)
