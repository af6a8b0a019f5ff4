"""Programs that a model wrote, run with limits: a process of its own, little time and memory.

The limits keep a wrong program from doing harm by accident (loops, memory, large files, its own
folder and environment alone). They hold nobody back who means harm: run what you do not trust on
a machine that you can lose.
"""

import subprocess
import sys
import tempfile

SECONDS = 10
MEMORY = 1 << 30  # bytes of address space
FILE = 1 << 20  # bytes of a file

# The limits are set in the new process: a fork of this one, which has threads, might hang.
_RUN = """
import resource, sys
for kind, most in zip(("CPU", "AS", "FSIZE", "CORE"), map(int, sys.argv[2:])):
    resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
exec(compile(sys.argv[1], "answer", "exec"), {"__name__": "__main__"})
"""


def ends_well(program: str) -> bool:
    """Whether a Python program exits with 0 within the limits."""
    limits = map(str, (SECONDS, MEMORY, FILE, 0))
    with tempfile.TemporaryDirectory(prefix="s7jax-program-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _RUN, program, *limits],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": folder},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=2 * SECONDS,
                check=False,
            )
        except (subprocess.TimeoutExpired, ValueError):  # ValueError: a NUL in the program
            return False
    return done.returncode == 0
