"""Compiles CUDA C++ kernels with g++ and, if wanted, checks them with NVRTC."""

import inspect
import os
import re

from .build_cache import CannotEmulateError, CompilationError, compile_source, write_text
from .device import NotEmulatedError

_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_KERNEL = re.compile(rf"(template\s*<[^;{{}}]*>\s*)?__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(")
_EXTERN_C_KERNEL = re.compile(rf'extern\s+"C"\s+(?={_BOUNDS}__global__)')
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\s*\(\d+\)\s*)?([\w: ]+?)\s*(\w+)\s*\[\s*\]\s*;"
)
# An unknown header may have barriers in it; without them kernels run faster.
_BARRIER = re.compile(r"__sync|__shfl|__ballot|__any_sync|__all_sync|#\s*include\s*(?!\s|<cupy/)")

# Compute capabilities, 8.0 and 9.0, that every kernel is checked for.
NVRTC_ARCHITECTURES = ("80", "90")

# CUDA code reinterprets memory and relies on wrapping integers; fused
# multiply-adds are left out so that results do not depend on the CPU.
_OPTIONS = ("-std=c++17", "-fPIC", "-fpermissive", "-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off")


class KernelCompiler:
    """Replaces the function of CuPy that turns CUDA source into a loaded module."""

    def __init__(self, device, cache, check_with_nvrtc):
        from cupy.cuda import compiler

        self._device, self._cache, self._check_with_nvrtc = device, cache, check_with_nvrtc
        self._cupy_compiler = compiler

    def install(self):
        """Make CuPy compile all kernels, its own and the user's, here."""
        original = inspect.signature(self._cupy_compiler._compile_module_with_cache)
        if inspect.signature(self.compile_module) != original:
            raise CannotEmulateError(f"this CuPy compiles kernels through another interface: {original}")
        self._cupy_compiler._compile_module_with_cache = self.compile_module
        if not self._check_with_nvrtc:  # CuPy asks for the version even if it compiles nothing
            self._cupy_compiler._get_nvrtc_version = lambda: (13, 0)

    def compile_module(
        self,
        source,
        options=(),
        *,
        arch=None,
        extra_source=None,
        backend="nvrtc",
        enable_cooperative_groups=False,
        name_expressions=None,
        log_stream=None,
        jitify=False,
        to_ltoir=False,
    ):
        """Compile and load; has the signature of compiler._compile_module_with_cache."""
        if jitify or to_ltoir or enable_cooperative_groups:
            raise NotEmulatedError("kernels that need Jitify, LTO or cooperative groups are not emulated")
        self._device.counters.kernels += 1
        if self._check_with_nvrtc:
            self._check(source, tuple(options), name_expressions)
        names = {expression: f"expression_{index}" for index, expression in enumerate(name_expressions or ())}
        module = self._cupy_compiler.function.Module()
        module.load(os.fsencode(self._compile_for_host(source, options, names)))
        module._set_mapping(names)
        return module

    def _check(self, source, options, name_expressions):
        """Raise CuPy's CompileException unless NVRTC accepts the kernel for each architecture."""
        compiler = self._cupy_compiler
        version = compiler._get_nvrtc_version()
        for arch in NVRTC_ARCHITECTURES:
            accepted = self._cache.path(f"nvrtc.sm_{arch}", source, options, name_expressions, version)
            if not accepted.exists():
                settings = {"arch": arch, "name_expressions": name_expressions, "cache_in_memory": True}
                compiler.compile_using_nvrtc(source, (*options, "-ftz=true"), **settings)
                accepted.touch()

    def _compile_for_host(self, source, options, names):
        """Return the path of a shared library with an entry point per kernel."""
        # Include folders and macros, less the headers that only nvcc can parse.
        options = [option for option in options if option.startswith(("-I", "-D")) and "_cccl" not in option]
        try:
            options = [*_OPTIONS, "-include", str(self._precompiled_prelude()), *options]
            return self._cache.build("kernel.so", host_source(source, names), *options)
        except CompilationError as failure:
            message = f"emulated_cuda: g++ rejected this kernel (not all of CUDA is emulated)\n{failure}"
            raise self._cupy_compiler.CompileException(message, source, "kernel.cu", options, "g++") from None

    def _precompiled_prelude(self):
        """The headers that nearly every kernel includes, parsed once."""
        from cupy._core import core

        text = '#include "cuda_on_host.h"\n' + "".join(
            f"#include <{name}>\n" for name in core._cupy_header_list
        )
        prelude = self._cache.path("prelude.h", text)
        # g++ looks for NAME.gch when it is told to include NAME.
        precompiled = prelude.with_name(prelude.name + ".gch")
        if not precompiled.exists():
            write_text(prelude, text)
            headers = f"-I{core._get_header_dir_path()}"
            compile_source(text, precompiled, *_OPTIONS, headers, language="c++-header")
        return prelude


def host_source(source, names):
    """Make CUDA source fit for g++ and append an entry point for each kernel.

    `names` maps C++ expressions for instances of template kernels to names.
    """
    kernels = {name: name for template, name in _KERNEL.findall(_COMMENT.sub("", source)) if not template}
    has_barriers = "true" if _BARRIER.search(source) else "false"
    source = _EXTERN_C_KERNEL.sub("", source)  # g++: a static function cannot be extern "C"
    source = _DYNAMIC_SHARED.sub(r"\1 *\2 = (\1 *)emulated::dynamic_shared;", source)
    source = re.sub(r"#include\s*<cuda/std/(\w+)>", r"#include <\1>", source)
    return source + "".join(
        f'\nextern "C" const char *launch_{name}(const unsigned *geometry, void **arguments, unsigned shared_bytes) {{'
        f" return emulated::launch<{expression}>(geometry, arguments, shared_bytes, {has_barriers}); }}"
        for expression, name in {**kernels, **names}.items()
    )
