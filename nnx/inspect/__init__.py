"""Look into a model while it computes: the output of each layer, the first nan, advice, and whether outputs suit losses.

Imports the core, layers, losses and data; no training and no models.
"""
