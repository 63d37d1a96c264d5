"""Training: the step, the cache of compiled steps, the loop over epochs and the nonfinite guard.

May import: core, activations, callbacks, data, distributed, graph, inspect, layers, losses, saving, NumPy.
"""
