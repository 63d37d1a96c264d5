"""The CuPy backend: arrays on a CUDA GPU, each kernel one launch."""
