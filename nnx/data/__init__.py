"""What `fit` takes: arrays, dataframes, files, iterables of batches, checked and cut into batches on the host.

May import: core, NumPy.
"""
