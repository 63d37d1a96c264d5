"""Array code recorded while it runs.

`graph` records array code as operations, `rules` has the derivative of each, `gradients` applies the chain rule,
and `derivatives` differentiates functions. `tracing` records a training step as library calls, and `writer`
generates one function from them; `recording` records an elementwise kernel; `fingerprint` detects whether anything
that a recorded function refers to has changed.

May import: core, NumPy.
"""
