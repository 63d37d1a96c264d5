"""What a network does to some samples, layer by layer: see `nnx.diagnose`."""

from nnx.inspect.diagnosis import Diagnosis, Row, diagnose

__all__ = ["Diagnosis", "Row", "diagnose"]
