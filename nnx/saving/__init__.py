"""Model files, written whole or not at all, and the resume files of an interrupted `fit`.

Imports layers and data; no models and no training.
"""
