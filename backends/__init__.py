"""The array libraries that nnx runs on, each an adapter to the protocol in `nnx.backend`."""
