"""The data of `fit`: arrays, dataframes, files and iterables of batches, checked and split into batches on the host.

May import: core, NumPy.
"""
