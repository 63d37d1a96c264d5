"""Observation of a model: the output of each layer, the first nan, advice, and whether outputs suit losses.

May import: core, activations, data, layers, losses, NumPy.
"""
