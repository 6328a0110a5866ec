"""A GPU that is this process, and a TensorRT that is an interpreter: put this folder, then the repository's root, on
PYTHONPATH, and `import cuda.bindings.runtime`, `cuda.bindings.driver` and `tensorrt` find them."""
