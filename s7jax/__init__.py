"""s7jax: train small domain-expert language models reproducibly, seal them, verify them.

Importing this package imports nothing heavy: every room is imported by name, and
``s7jax.s7l`` (the sealed file) works without JAX.
"""

__version__ = "0.1.0"
