"""What opening and verifying files costs, measured in a process in which nothing else happens.

Memory is what is allocated between call and answer (``tracemalloc``), work is how many functions
are called: both are the same every time, on however busy a machine.
"""

import contextlib
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cost:
    """Of one call: what it raised, the most bytes it held, the functions it called."""

    error: str | None
    peak: int
    calls: int


def costs(paths: list[Path]) -> list[tuple[Cost, Cost]]:
    """Of each file, the library's cost of opening and verifying it, and the second verifier's."""
    command = [sys.executable, __file__]
    folders = [str(HERE), str(HERE.parents[1]), *sys.path]
    done = subprocess.run(
        command,
        input="\n".join(map(str, paths)),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [[Cost(**cost) for cost in json.loads(line)] for line in done.stdout.splitlines()]
    return [(library, second) for library, second in found]


def cost(call, refusals) -> Cost:
    """Once for its own sake, so that nothing is imported later; then counted.

    Of two peaks the lower: a table of the interpreter that happens to grow is not the call's.
    """
    error = None
    try:
        call()
    except refusals as e:
        error = str(e)
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        with contextlib.suppress(refusals):
            call()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    with contextlib.suppress(refusals):
        call()
    sys.setprofile(None)
    return Cost(error, min(peaks), calls)


def main() -> None:
    """Paths on standard input, the two costs of each as JSON on standard output."""
    from second import second

    from s7jax import s7l

    for path in sys.stdin.read().splitlines():
        library = cost(lambda path=path: s7l.open(path).verify(), s7l.SealError)
        other = cost(lambda path=path: second.verify(path), second.Refused)
        print(json.dumps([vars(library), vars(other)]), flush=True)


if __name__ == "__main__":
    main()
