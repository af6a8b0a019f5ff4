"""Programs that a model wrote, run with limits: a process of its own, little time and memory.

The limits keep a wrong program from doing harm by accident (loops, memory, large files, its own
folder and environment alone). They hold nobody back who means harm: run what you do not trust on
a machine that you can lose.
"""

import resource
import subprocess
import sys
import tempfile

SECONDS = 10
MEMORY = 1 << 30  # bytes of address space
FILE = 1 << 20  # bytes of a file


def ends_well(program: str) -> bool:
    """Whether a Python program exits with 0 within the limits."""
    with tempfile.TemporaryDirectory(prefix="s7jax-program-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": folder},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=_limit,
                timeout=2 * SECONDS,
                check=False,
                start_new_session=True,
            )
        except (subprocess.TimeoutExpired, ValueError):  # ValueError: a NUL in the program
            return False
    return done.returncode == 0


def _limit() -> None:
    for kind, most in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
