"""``python -m s7jax``: the same as the command ``s7jax``."""

from s7jax.commands import main

if __name__ == "__main__":
    main()
