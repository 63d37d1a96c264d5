"""What `fit` takes: arrays, dataframes, files, iterables of batches, checked and cut into batches on the host.

Imports the core (`nnx.tree`, `nnx.shapes`, ...) and no layers.
"""
