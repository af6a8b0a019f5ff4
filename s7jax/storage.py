"""Writing files so that nobody ever sees half of one."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, tree: Any) -> None:
    """Write JSON: a reader sees the old file or the whole new one, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(tree, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
