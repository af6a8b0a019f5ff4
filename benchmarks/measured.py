"""Run a command and write, as JSON, what the kernel says of it when it has ended.

A process that the kernel has just started counts the memory of the one that started it as its own
peak. So a measured command is started by this small process, not by a large one.

Example:
  python -S benchmarks/measured.py taken.json python tools/verify.py model.s7l
"""

import json
import os
import signal
import sys
from pathlib import Path


def main() -> int:
    """Run ``argv[2:]``, pass signals on to it, write seconds and KiB to ``argv[1]``."""
    out, *command = sys.argv[1:]
    child = os.posix_spawnp(command[0], command, os.environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status, usage = os.wait4(child, 0)
    taken = {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_kib": usage.ru_maxrss}
    Path(out).write_text(json.dumps(taken))
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
