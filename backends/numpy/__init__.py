"""The NumPy backend: arrays on the host, kernels in cache-sized blocks, or compiled by Numba.

May import: core, graph, backends.shared, NumPy.
"""
