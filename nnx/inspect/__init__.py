"""Look into a pass: the output of each layer, the first nan, advice, and whether outputs suit the loss.

Imports the core, layers, losses and data; no training and no models.
"""
