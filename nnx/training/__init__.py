"""What `fit` runs: the training step, the cache of compiled steps, the loop over epochs and the nonfinite guard.

Imports layers, losses, metrics, optimizers, callbacks, data and saving; no models.
"""
