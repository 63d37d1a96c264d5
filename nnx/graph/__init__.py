"""Array code recorded while it runs.

`tracing` records a training step as library calls, and `writer` generates one function from them;
`recording` records an elementwise kernel; `export_graph` and `export_trace` record a model for ONNX and NumPy;
`fingerprint` detects whether anything that a recorded function refers to has changed.

May import: core, layers, NumPy.
"""
