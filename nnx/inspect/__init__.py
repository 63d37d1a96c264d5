"""A look at a model while it computes: layer by layer, where numbers first go wrong, and diagnosis.

Imports layers and training.
"""
