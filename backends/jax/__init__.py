"""The JAX backend: steps compiled by XLA.

May import: core, backends.shared, NumPy, JAX.
"""
