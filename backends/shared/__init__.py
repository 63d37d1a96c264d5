"""What backends share: the eager base of NumPy and CuPy, flat buffers, compiled steps, prefetching, sockets.

May import: core, distributed, graph, NumPy.
"""
