"""Array code written down while it runs.

`tracing` records a training step as library calls and `writer` turns it into one plain function;
`recording` records an elementwise kernel; `export_graph` and `export_trace` record a model for ONNX and NumPy;
`fingerprint` tells whether what a recorded function refers to has changed since.

May import: core, layers, NumPy.
"""
