"""The CuPy backend: arrays on a CUDA GPU, each kernel one launch.

May import: core, distributed, graph, backends.shared, NumPy, CuPy, cupyx, array_api_compat.
"""
