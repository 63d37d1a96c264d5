"""A model as a Python module that needs only NumPy.

    def predict(x):
        x = np.asarray(x, dtype=np.float32)
        # dense
        dense = np.maximum(x @ weights['dense/kernel'] + weights['dense/bias'], 0.0)
        ...

Each line is the expression of a traced operation; an expression that is used once is put into its user.
"""

import io
import keyword
import math
from typing import Any

import numpy as np

from nnx.export.trace import Batch, ExportError, ModelGraph, trace
from nnx.graph.graph import Symbol, leaves
from nnx.saving import files
from nnx.shapes import describe_shape, is_single

LONGEST = 80
"""The longest expression, in characters, that is put into another."""

# Python's operators and their precedence.
OPERATORS = {
    "add": ("+", 4), "subtract": ("-", 4), "multiply": ("*", 5), "divide": ("/", 5), "matmul": ("@", 5),
    "remainder": ("%", 5), "floor_divide": ("//", 5), "pow": ("**", 7),
    "less": ("<", 0), "less_equal": ("<=", 0), "greater": (">", 0), "greater_equal": (">=", 0),
    "equal": ("==", 0), "not_equal": ("!=", 0),
    "bitwise_and": ("&", 3), "bitwise_xor": ("^", 2), "bitwise_or": ("|", 1),
    "bitwise_left_shift": ("<<", 3.5), "bitwise_right_shift": (">>", 3.5),
}  # fmt: skip
ATOM = 10
"""The precedence of a name or a call."""
SPELLING = {"permute_dims": "transpose", "concat": "concatenate"}
"""Names that differ in NumPy 2.0."""

HELPERS = {
    "checked": '''
def checked(x, name, shape, dtype, categories=None):
    """Return x as an array (batch, *shape) of finite numbers, or of numbers of categories."""
    x = np.asarray(x)
    x = x.astype(np.float64) if x.dtype == object else x
    if x.dtype.kind not in 'buif':
        raise ValueError(f'{name} must be numbers, got dtype {x.dtype}')
    if x.ndim == 0 or x.shape[1:] != shape:
        raise ValueError(f"{name} must be ({', '.join(map(str, ('batch', *shape)))}), got {x.shape}")
    if categories is None:
        with np.errstate(over='ignore'):
            x = x.astype(dtype)
        right, what = np.isfinite(x), 'finite numbers'
    else:
        right, what = (x >= 0) & (x < categories) & (x == np.floor(x)), f'whole numbers from 0 to {categories - 1}'
    if not right.all():
        raise ValueError(f'{name} must be {what}, got {x[~right][0]}')
    return x.astype(dtype)
''',
    "patches": '''
def patches(x, size, strides, dilation, padding, counts):
    """Return the elements of each window of x side by side: (batch, *counts, elements * channels)."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    parts = [x[key] for key in window_keys(size, strides, dilation, counts)]
    return np.concatenate(parts, axis=-1)
''',
    "from_patches": '''
def from_patches(rows, size, strides, dilation, padding, counts, spatial):
    """Return (batch, *spatial, channels): the elements of each window added where they belong."""
    keys = window_keys(size, strides, dilation, counts)
    padded = [n + before + after for n, (before, after) in zip(spatial, padding)]
    y = np.zeros((len(rows), *padded, rows.shape[-1] // len(keys)), rows.dtype)
    for key, part in zip(keys, np.split(rows, len(keys), axis=-1)):
        y[key] += part
    return y[(slice(None), *(slice(before, before + n) for n, (before, _) in zip(spatial, padding)))]
''',
    "window_keys": '''
def window_keys(size, strides, dilation, counts):
    """Return, for each element of a window, the index that takes it out of all windows."""
    keys = []
    for place in np.ndindex(*size):
        starts = [i * step for i, step in zip(place, dilation)]
        axes = zip(starts, strides, counts)
        keys.append((slice(None), *(slice(i, i + (n - 1) * step + 1, step) for i, step, n in axes)))
    return keys
''',
}


def source(model) -> str:
    """Return the text of a module with the predictions of `model`, including the weights."""
    return _Module(trace(model)).text(model.name)


def write(model, path) -> str:
    """Write the module to `path` and the weights to an .npz file beside it; return the text."""
    name = str(path)
    if not name.endswith(".py"):
        raise ValueError(f"the path of a module must end in .py, got {name!r}: give {name + '.py'!r}")
    program = trace(model)
    text, packed = _Module(program).text(model.name, ".npz"), io.BytesIO()
    np.savez(packed, **program.weights)  # pyright: ignore[reportArgumentType]
    files.write_whole(name.removesuffix(".py") + ".npz", packed.getvalue())
    files.write_whole(name, text.encode())
    return text


class _Module:
    """Writes a program as the text of a module."""

    def __init__(self, program: ModelGraph):
        self.program = program
        self.names: dict[Symbol, str] = {}
        self.texts: dict[
            Symbol, tuple[str, float]
        ] = {}  # expression and precedence of Symbols without a name
        self.taken = {"np", "weights", "predict", "batch", *HELPERS}
        self.uses: dict[Symbol, int] = {}
        self.helpers: set[str] = set()
        self.needs_batch = False

    def text(self, title: str, weights_file: str | None = None) -> str:
        """Return the text, which reads the weights from a file with this suffix beside it, or includes them."""
        body = self._predict()
        helpers = [HELPERS[name] for name in HELPERS if name in self.helpers]
        parts = [
            _docstring(f"Predictions of the model {title!r}, exported by nnx. Needs NumPy alone."),
            "import numpy as np",
            self._weights(weights_file),
            *(helper.strip() + "\n" for helper in helpers),
            body,
        ]
        return "\n\n".join(parts[:2]) + "\n\n" + "\n\n\n".join(part.strip("\n") for part in parts[2:]) + "\n"

    def _weights(self, weights_file: str | None) -> str:
        if weights_file is not None:
            return (
                "# Beside this file, under the same name.\n"
                f"with np.load(__file__.rpartition('.')[0] + {weights_file!r}, allow_pickle=False) as file:\n"
                "    weights = dict(file)"
            )
        lines = ["weights = {"]
        for name, array in self.program.weights.items():
            array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            lines.append(
                f"    {name!r}: np.frombuffer(bytes.fromhex({array.tobytes().hex()!r}), {array.dtype.str!r})"
                f".reshape({array.shape}),"
            )
        return "\n".join([*lines, "}"])

    # The function

    def _predict(self) -> str:
        program = self.program
        self._count(program.symbols)
        for _, symbol in program.outputs:
            self.uses[symbol] = self.uses.get(symbol, 0) + 2
        given = self._name("x")
        lines = self._inputs(given)
        lines += self._lines(program.symbols)
        result = self._structure(program.out_shape, iter(program.outputs))
        shapes = f"{describe_shape(program.in_shape)} -> {describe_shape(program.out_shape)}"
        head = [_docstring(f"Return the outputs for {given}: {shapes}.")]
        if self.needs_batch:
            first = self.names[program.inputs[0][1]]
            lines.insert(len(program.inputs), f"batch = len({first})")
        return "\n".join(
            [f"def predict({given}):", *(f"    {line}" for line in [*head, *lines, f"return {result}"])]
        )

    def _inputs(self, given: str) -> list[str]:
        """Return the lines that check each input and assign it to a variable."""
        lines, several = [], not is_single(self.program.in_shape)
        places = _places(self.program.in_shape, given)
        inputs = zip(self.program.inputs, places, self.program.categories, strict=True)
        for (name, symbol), place, count in inputs:
            own = self.names[symbol] = self._name(name) if several else given
            more = "" if count is None else f", {count}"
            lines.append(f"{own} = checked({place}, {place!r}, {symbol.shape[1:]}, np.{symbol.dtype}{more})")
        self.helpers.add("checked")
        if several:
            rows = ", ".join(f"len({self.names[symbol]})" for _, symbol in self.program.inputs)
            lines += [
                f"if len({{{rows}}}) > 1:",
                f"    raise ValueError(f'the inputs differ in their number of samples: {{[{rows}]}}')",
            ]
        return lines

    def _structure(self, shape, outputs) -> str:
        """Return the expression of the result: an array, or a dict or tuple of arrays."""
        if is_single(shape):
            return self._expression(next(outputs)[1])[0]
        if isinstance(shape, dict):
            return "{" + ", ".join(f"{k!r}: {self._structure(s, outputs)}" for k, s in shape.items()) + "}"
        return "(" + "".join(f"{self._structure(s, outputs)}, " for s in shape) + ")"

    def _count(self, symbols) -> None:
        """Count the uses of each Symbol; a use inside a loop counts as two, so that it is computed before the loop."""
        for symbol in symbols:
            settings = symbol.settings
            if symbol.op == "scan":
                body = set(settings["body"])
                for inner in settings["body"]:
                    for leaf in leaves((inner.arguments, inner.settings)):
                        if isinstance(leaf, Symbol) and leaf not in body:
                            self.uses[leaf] = 2
                self._count(settings["body"])
                for leaf in (*leaves(symbol.arguments), *settings["results"]):
                    if isinstance(leaf, Symbol):
                        self.uses[leaf] = 2
            else:
                for leaf in leaves((symbol.arguments, settings)):
                    if isinstance(leaf, Symbol):
                        self.uses[leaf] = self.uses.get(leaf, 0) + 1

    def _lines(self, symbols) -> list[str]:
        lines, path = [], None
        users = {
            leaf: s for s in symbols for leaf in leaves((s.arguments, s.settings)) if isinstance(leaf, Symbol)
        }
        for symbol in symbols:
            if symbol.op == "input" or symbol in self.names:
                continue
            new = []
            if symbol.op == "scan":
                new = self._loop(symbol)
            elif symbol.op == "item":
                continue
            else:
                text, binding = self._call(symbol)
                user = users.get(symbol)
                is_last = user is None or user.path != symbol.path
                if self.uses.get(symbol, 0) == 1 and not is_last and len(text) <= LONGEST:
                    self.texts[symbol] = text, binding
                else:
                    self.names[symbol] = self._name(symbol.path.rpartition("/")[2] or "y")
                    new = [f"{self.names[symbol]} = {text}"]
            if new and symbol.path != path:
                path = symbol.path
                lines.append(f"# {_printable(path)}")
            lines += new
        return lines

    def _loop(self, loop: Symbol) -> list[str]:
        (carry, xs), settings = loop.arguments, loop.settings
        inputs, results = settings["inputs"], settings["results"]
        name = loop.path.rpartition("/")[2] or "loop"
        before, after, stacks = [], [], []
        for symbol, start in zip(inputs[: len(carry)], carry, strict=True):
            self.names[symbol] = self._name(f"{name}_state")
            before.append(f"{self.names[symbol]} = {self._value(start)}")
        step, rows = self._name("t"), []
        for symbol, x in zip(inputs[len(carry) :], xs, strict=True):
            self.names[symbol] = self._name(f"{name}_x")
            rows.append(f"{self.names[symbol]} = {self._value(x, ATOM)}[{step}]")
        body = self._lines(settings["body"])
        for i, result in enumerate(results):
            items = [
                s
                for s in self.program.symbols
                if s.op == "item" and s.arguments[0] is loop and s.arguments[1] == i
            ]
            if items:
                stack = self._name(f"{name}_steps")
                before.append(f"{stack} = []")
                stacks.append(f"{stack}.append({self._value(result)})")
                values = f"{stack}[::-1]" if settings["reverse"] else stack
                after.append(f"{stack} = np.stack({values})")
                self.names.update(dict.fromkeys(items, stack))
        states = [
            (self.names[symbol], self._value(result))
            for symbol, result in zip(inputs[: len(carry)], results, strict=False)
        ]
        update = ", ".join(n for n, _ in states) + " = " + ", ".join(v for _, v in states)
        length = f"range({len(xs[0].value) if isinstance(xs[0], Symbol) else len(xs[0])})"
        times = f"reversed({length})" if settings["reverse"] else length
        inner = [*rows, *(line for line in body if not line.startswith("#")), *stacks, update]
        return [*before, f"for {step} in {times}:", *(f"    {line}" for line in inner), *after]

    # Expressions

    def _expression(self, symbol: Symbol) -> tuple[str, float]:
        return (self.names[symbol], ATOM) if symbol in self.names else self.texts[symbol]

    def _call(self, symbol: Symbol) -> tuple[str, float]:
        op, given, settings = symbol.op, symbol.arguments, symbol.settings
        if op in OPERATORS and not settings:
            sign, binding = OPERATORS[op]
            power = op == "pow"
            left = self._value(given[0], binding + (0.5 if power or not binding else 0))
            right = self._value(given[1], binding + (0 if power else 0.5))
            return f"{left} {sign} {right}", binding
        if op == "negative":
            return f"-{self._value(given[0], 6)}", 6
        if op == "getitem":
            return f"{self._value(given[0], ATOM)}[{self._key(given[1])}]", ATOM
        if op == "astype":
            return f"{self._value(given[0], ATOM)}.astype({self._value(given[1])})", ATOM
        if op == "reshape":
            return f"{self._value(given[0], ATOM)}.reshape({self._shape(self.program.shapes[symbol])})", ATOM
        if op == "permute_dims":
            if given[1] == tuple(range(symbol.ndim))[::-1]:
                return f"{self._value(given[0], ATOM)}.T", ATOM
            return f"{self._value(given[0], ATOM)}.transpose({self._value(tuple(given[1]))})", ATOM
        if op == "pad":
            x, widths, value = given
            more = f", constant_values={self._value(value)}" if value else ""
            return f"np.pad({self._value(x)}, {self._value(widths)}{more})", ATOM
        if op in ("patches", "from_patches"):
            return self._windows(op, *given)
        if op == "unslice":
            raise ExportError(f"layer {symbol.path!r} cannot be exported: it adds up slices")
        return self._function(op, given, settings), ATOM

    def _function(self, op, given, settings) -> str:
        arguments = [self._value(argument) for argument in given]
        arguments += [f"{name}={self._value(value)}" for name, value in settings.items()]
        return f"np.{SPELLING.get(op, op)}({', '.join(arguments)})"

    def _windows(self, op, x, windows) -> tuple[str, float]:
        self.helpers |= {op, "window_keys"}
        fields = ["size", "strides", "dilation", "padding", "counts"] + ["spatial"] * (op == "from_patches")
        settings = ", ".join(f"{field}={self._value(getattr(windows, field))}" for field in fields)
        return f"{op}({self._value(x)}, {settings})", ATOM

    def _value(self, value: Any, binding: float = 0) -> str:
        """Return an argument as text, in brackets if its precedence is below `binding`."""
        if isinstance(value, Symbol):
            text, own = self._expression(value)
            return text if own >= binding else f"({text})"
        if isinstance(value, Batch):
            self.needs_batch = True
            return "batch" if value.times == 1 else f"{value.times} * batch"
        if isinstance(value, (np.ndarray, np.generic)):
            return f"weights[{self.program.weight_name(value)!r}]"
        if isinstance(value, tuple):
            return "(" + ", ".join(map(self._value, value)) + ("," if len(value) == 1 else "") + ")"
        if isinstance(value, list):
            return "[" + ", ".join(map(self._value, value)) + "]"
        if isinstance(value, (np.dtype, type)):
            return f"np.{np.dtype(value).name}"
        if isinstance(value, float) and not math.isfinite(value):
            return "np.nan" if math.isnan(value) else "np.inf" if value > 0 else "(-np.inf)"
        text = repr(value)
        return f"({text})" if isinstance(value, (int, float)) and text[0] == "-" and binding > 6 else text

    def _shape(self, shape) -> str:
        shape = shape if isinstance(shape, (tuple, list)) else (shape,)
        if sum(isinstance(n, Batch) for n in shape) == 1 and -1 not in shape:
            shape = tuple(-1 if isinstance(n, Batch) else n for n in shape)
        return self._value(tuple(shape))

    def _key(self, key) -> str:
        keys = key if isinstance(key, tuple) else (key,)
        return ", ".join(map(self._index, keys))

    def _index(self, key) -> str:
        if isinstance(key, slice):
            start, stop = ("" if end is None else self._value(end) for end in (key.start, key.stop))
            step = "" if key.step in (None, 1) else f":{key.step}"
            return f"{'' if start == '0' else start}:{stop}{step}"
        return "..." if key is ... else self._value(key)

    def _name(self, wanted: str) -> str:
        """Return an unused variable name."""
        base = "".join(c if c.isalnum() and c.isascii() else "_" for c in wanted).strip("_") or "y"
        base = f"v{base}" if base[0].isdigit() else base
        base = f"{base}_" if keyword.iskeyword(base) or base in ("range", "len", "reversed") else base
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base.rstrip('_')}_{count}"
        self.taken.add(name)
        return name


def _places(shape, text: str) -> list[str]:
    """Return the expression of each array in a value of this shape that is called `text`."""
    if is_single(shape):
        return [text]
    items = shape.items() if isinstance(shape, dict) else enumerate(shape)
    return [place for key, inner in items for place in _places(inner, f"{text}[{key!r}]")]


def _printable(text: str) -> str:
    """Return text without control characters, so that a name cannot inject code."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _docstring(text: str) -> str:
    escaped = _printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"""{escaped}"""'
