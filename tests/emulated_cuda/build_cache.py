"""Compiles C and C++ with g++ into an on-disk cache that several processes may use at once."""

import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

NATIVE = pathlib.Path(__file__).parent / "native"
# The tests launch small kernels: what matters is the time to compile them, not to run them.
_OPTIONS = ("-O1", "-w")


class CannotEmulateError(RuntimeError):
    """The emulation cannot work in this environment; the message names the remedy."""


class CompilationError(RuntimeError):
    """g++ rejected a source; the message is its output."""


class BuildCache:
    """A directory of build products, separate for each CuPy version.

    A product's name contains the hash of everything it was made from, so that nothing in the
    directory is ever out of date and it can be deleted at will. Products are written beside their
    place and then renamed: another process sees the whole file or none.
    """

    def __init__(self, cupy_version):
        base = os.environ.get("EMULATED_CUDA_CACHE")
        base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache" / "emulated-cuda"
        self.directory = base.resolve() / f"cupy-{cupy_version}"
        self.directory.mkdir(parents=True, exist_ok=True)
        _compiler()  # complains now, not at the first kernel

    def path(self, name, *ingredients):
        """Return where the product made from these ingredients is, or will be."""
        everything = repr((ingredients, _OPTIONS, _native_sources(), _compiler()))
        # Environments in different places share what was compiled.
        digest = hashlib.sha256(everything.replace(sys.prefix, "").encode()).hexdigest()[:24]
        stem, _, suffix = name.partition(".")
        return self.directory / f"{stem}-{digest}.{suffix}"

    def build(self, name, source, *options, language="c++"):
        """Return the path of the shared library compiled from `source`."""
        product = self.path(name, source, options)
        if not product.exists():
            compile_source(source, product, "-shared", "-fPIC", *options, language=language)
        return product


def compile_source(source, product, *options, language="c++"):
    """Compile to the file `product`."""
    with tempfile.TemporaryDirectory(dir=product.parent) as folder:
        source_file, output = pathlib.Path(folder, "source"), pathlib.Path(folder, "output")
        source_file.write_text(source)
        files = ["-x", language, source_file, "-o", output]
        command = [_compiler()[0], *_OPTIONS, f"-I{NATIVE}", *options, *files]
        result = subprocess.run(command, stderr=subprocess.PIPE)
        if result.returncode:
            raise CompilationError(result.stderr.decode(errors="replace"))
        output.replace(product)


def write_text(path, text):
    """Write a file whole, for other processes to see."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        pathlib.Path(folder, "text").write_text(text)
        pathlib.Path(folder, "text").replace(path)


@functools.cache
def _compiler():
    """Return path and version of g++."""
    path = shutil.which("g++")
    if path is None:
        raise CannotEmulateError(
            "emulated_cuda compiles kernels with g++, which was not found: apt-get install g++"
        )
    command = [path, "-dumpfullversion"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if int(version.split(".")[0]) < 12:
        raise CannotEmulateError(
            f"emulated_cuda needs g++ 12 or newer, for half precision, found {version}: apt-get install g++-12, "
            f"and put it on the PATH as g++"
        )
    return path, version


@functools.cache
def _native_sources():
    return [path.read_text() for path in sorted(NATIVE.rglob("*.*")) if path.is_file()]
