"""In a clone, the backends lie beside this package, in `backends/`; an installed nnx has them in this folder."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "backends")]
