"""A look into a model while it computes: each layer's output, the first nan, advice, and whether outputs suit losses.

May import: core, activations, data, layers, losses, NumPy.
"""
