"""Replaces the functions of CuPy's Cython modules, for C and for Python callers.

CuPy calls CUDA through a few Cython modules (`runtime`, `driver`, `cublas`).
Each offers its functions to CuPy's other Cython modules in a table,
``__pyx_capi__``, of C function pointers wrapped in capsules whose name is the
C signature.  A module copies the pointers it needs when it is imported; so if
the table is changed before `cupy` is imported, all of CuPy calls ours instead.

Ours are small C functions, generated from the signatures, that convert the
arguments and call a Python method.  (ctypes callbacks cannot be used: they
cannot raise exceptions.)
"""

import ctypes
import re

from .device import NotEmulatedError

# Format codes of PyObject_CallFunction and the C types they expect.
_ARGUMENTS = {
    "int": ("i", "int"),
    "CUdevice": ("i", "int"),
    "cudaMemcpyKind": ("i", "int"),
    "unsigned int": ("I", "unsigned int"),
    "intptr_t": ("n", "intptr_t"),
    "size_t": ("K", "unsigned long long"),
    "uintmax_t": ("K", "unsigned long long"),
    "PY_LONG_LONG": ("L", "long long"),
    "PyObject *": ("O", "void *"),
}
# How to convert the result, and the value that tells Cython "an exception is
# set"; it is part of each function's Cython declaration, hence the exceptions.
_RESULTS = {
    "int": ("PyLong_AsLong", -1),
    "unsigned int": ("PyLong_AsLong", 0),
    "intptr_t": ("PyLong_AsSsize_t", 0),
    "size_t": ("PyLong_AsSize_t", 0),
    "uintmax_t": ("PyLong_AsSize_t", 0),
    "float": ("PyFloat_AsDouble", 0),
}
_ERROR_VALUES = {"funcGetAttribute": -2, "deviceGetLimit": -1, "streamGetPriority": 0}

# Declared by hand, so that Python's development headers are not needed.
_PROLOGUE = """
#include <stdint.h>
#include <stddef.h>
void *PyObject_CallFunction(void *, const char *, ...);
long PyLong_AsLong(void *);
intptr_t PyLong_AsSsize_t(void *);
size_t PyLong_AsSize_t(void *);
double PyFloat_AsDouble(void *);
void Py_DecRef(void *);
"""

_python = ctypes.pythonapi
_python.PyCapsule_GetName.argtypes = [ctypes.py_object]
_python.PyCapsule_GetName.restype = ctypes.c_char_p
_python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_python.PyCapsule_New.restype = ctypes.py_object
_python.Py_IncRef.argtypes = [ctypes.py_object]


def replace_functions(fakes, cache):
    """Make CuPy call methods of `fakes`: pairs of (Cython module, fake)."""
    replace_c_functions(fakes, cache)
    replace_python_functions(fakes)


def replace_c_functions(fakes, cache):
    entries = [
        (module, fake, name, signature)
        for module, fake in fakes
        for name, signature in _c_functions(module)
        if name not in fake.LEFT_AS_IS
    ]
    source = _PROLOGUE + "".join(
        _trampoline(module, name, signature) for module, _, name, signature in entries
    )
    library = ctypes.PyDLL(str(cache.build("trampolines.so", source, language="c")))
    for module, fake, name, signature in entries:
        _replace_in_table(library, module, name, signature, handler(fake, name))


def replace_python_functions(fakes):
    for module, fake in fakes:
        for name, value in list(vars(module).items()):
            is_function = callable(value) and not isinstance(value, type) and not name.startswith("_")
            if is_function and name not in fake.LEFT_AS_IS:
                setattr(module, name, handler(fake, name))


def handler(fake, name):
    """The fake's method, constant, or a function that refuses the call."""
    if hasattr(fake, name):
        return getattr(fake, name)
    if name in fake.CONSTANTS:
        return lambda *arguments: fake.CONSTANTS[name]

    def refuse(*arguments, **options):
        raise NotEmulatedError(f"{fake.LABEL}: {name} is not emulated")

    return refuse


def _c_functions(module):
    """Yield (name, C signature) of the table's functions that we can call."""
    for name, capsule in getattr(module, "__pyx_capi__", {}).items():
        signature = _python.PyCapsule_GetName(capsule).decode()
        if "(" in signature and _result_type(signature) in (*_RESULTS, "PyObject *"):
            yield name, signature


def _result_type(signature):
    result = signature[: signature.index("(")].strip()
    return "PyObject *" if result.endswith("*") else result


def _argument_types(signature):
    """C types of the arguments, without the two that Cython adds at the end."""
    types = signature[signature.index("(") + 1 : -1].split(", ")
    types = [
        text
        for text in types
        if text != "void" and not re.search("__pyx_(skip_dispatch|optional_args)", text)
    ]
    return ["PyObject *" if text.startswith("struct") else text for text in types]


def _symbol(module, name):
    return f"{module.__name__.rpartition('.')[2]}_{name}"


def _trampoline(module, name, signature):
    """C source of the function that stands in for one entry of a table."""
    symbol = _symbol(module, name)
    types = [_ARGUMENTS[text] for text in _argument_types(signature)]
    parameters = ", ".join(f"{c_type} a{index}" for index, (_, c_type) in enumerate(types)) or "void"
    values = "".join(f", a{index}" for index in range(len(types)))
    codes = "".join(code for code, _ in types)
    call = f'PyObject_CallFunction({symbol}_handler, "({codes})"{values})'
    result = _result_type(signature)
    head = f"void *{symbol}_handler;\n"
    if result == "PyObject *":
        return f"{head}void *{symbol}({parameters}) {{ return {call}; }}\n"
    convert, default = _RESULTS[result]
    error = _ERROR_VALUES.get(name, default)
    return (
        f"{head}{result} {symbol}({parameters}) {{\n"
        f"    void *object = {call};\n"
        f"    if (!object) return ({result}){error};\n"
        f"    {result} value = ({result}){convert}(object);\n"
        f"    Py_DecRef(object);\n    return value;\n}}\n"
    )


def _replace_in_table(library, module, name, signature, python_function):
    symbol, encoded = _symbol(module, name), signature.encode()
    ctypes.c_void_p.in_dll(library, f"{symbol}_handler").value = id(python_function)
    address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p)
    # C code points to these until the process ends, also after Python has
    # cleared this module: CuPy frees memory that late.
    for needed in (python_function, encoded, module.__pyx_capi__[name]):
        _python.Py_IncRef(needed)
    module.__pyx_capi__[name] = _python.PyCapsule_New(address, encoded, None)
