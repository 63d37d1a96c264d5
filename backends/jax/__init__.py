"""The JAX backend: steps compiled by XLA."""
