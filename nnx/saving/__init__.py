"""Model files, written whole or not at all, and the resume files of an interrupted `fit`.

May import: core, data, distributed, layers, NumPy.
"""
