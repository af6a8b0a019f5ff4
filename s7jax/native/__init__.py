"""The native engine: the integer model in C, on the sealed tensors where they lie."""
