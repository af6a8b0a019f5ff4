"""Compiled programs, kept in the user's cache folder for the next process.

What lies there is code that will be run, so the folder has to be its owner's alone.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import jax

_OTHERS_WRITE = 0o022


def keep() -> None:
    """Have JAX keep what this process compiles, unless it was told where to, or not to.

    A folder that cannot be made or written is none; one that others can write is warned of.
    """
    config: Any = jax.config  # its type names no setting
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "s7jax" / "xla"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # the latter where there is no home
        return
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
        warnings.warn(
            f"{folder} is not used: others can write to it, and what it holds would be run",
            stacklevel=2,
        )
    elif os.access(folder, os.W_OK | os.X_OK):
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
