"""Measure opening, verifying and sealing on a model of 144 MB, beside safetensors.

The model is made on the fly: the dimensions of s7-140m, a vocabulary of 24,576 tokens, values
from a hash. Every figure is a median of one run. Exit code 1 if a bound is missed.

Examples:
  python benchmarks/seal.py
  python benchmarks/seal.py --repeat 21 --json
"""

import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from s7jax import s7l
from s7jax.architecture import sealed_tensors
from s7jax.config import S7_140M
from s7jax.s7l.contract import PATTERNS
from s7jax.s7l.dimensions import architecture_tree, tensor_entry
from s7jax.terminal import cli

ROOT = Path(__file__).resolve().parents[1]
MEMORY = """
import re, runpy, sys
if len(sys.argv) > 1:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
print(re.search("VmHWM: *(.*) kB", open("/proc/self/status").read().replace("\\t", ""))[1])
"""


PAGES = """
import sys
from s7jax import s7l
seal = s7l.open(sys.argv[1], mode="mmap")
lines = open("/proc/self/smaps").read().splitlines()
at = next(i for i, line in enumerate(lines) if line.endswith(sys.argv[1]))
print(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])
"""


def main() -> int:
    """Make the inputs, measure, print."""
    parser = cli.parser(__doc__)
    parser.add_argument("--repeat", type=int, default=11, help="measurements of each figure")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".seal-benchmark-") as folder:
        write_inputs(Path(folder), random.Random(0))
        rows = measure(Path(folder), args.repeat)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            bound = "" if row["bound"] is None else f"  (at most {row['bound']:g})"
            print(f"{row['what']:<52}{row['value']:>10.3f} {row['unit']:<5}{bound}")
    return int(any(row["bound"] is not None and row["value"] > row["bound"] for row in rows))


def measure(root: Path, repeat: int) -> list[dict[str, Any]]:
    """Every figure, beside the bound it must keep."""
    weights, vocabulary, sealed = root / "weights", root / "vocab.json", root / "moe.s7l"
    seals = []
    for _ in range(max(3, repeat // 2)):
        sealed.unlink(missing_ok=True)
        seals.append(seconds(lambda: s7l.seal(weights, vocabulary, sealed)))
    seal, theirs = s7l.open(sealed), root / "moe.safetensors"
    s7l.export_safetensors(seal, theirs)
    s7l.extract(seal, "expert2", root / "expert2.s7b")
    data = sealed.read_bytes()
    times: dict[str, list[float]] = {}
    for _ in range(repeat):  # interleaved, so that a slow minute slows all of them
        for name, call, clock in (
            ("plain", lambda: hashlib.sha256(data).digest(), time.perf_counter),
            ("verify", s7l.open(sealed).verify, time.perf_counter),
            ("open", lambda: s7l.open(sealed), time.process_time),
            ("expert", lambda: s7l.open_bundle(root / "expert2.s7b").verify(), time.perf_counter),
            ("views", lambda: views(sealed), time.perf_counter),
            ("safetensors", lambda: load_file(theirs), time.perf_counter),
        ):
            times.setdefault(name, []).append(seconds(call, clock))
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["verify"], times["plain"], strict=True))
    own = sum(tensor.stored for tensor in seal.manifest.components["expert2"])
    beyond = (root / "expert2.s7b").stat().st_size - own
    return [
        row("file", seal.length / 1e6, "MB"),
        row("open, CPU", 1e3 * middle["open"], "ms", 50),
        row("weight pages touched by open", touched_pages(sealed), "pages", 0),
        row("plain SHA-256 of the same bytes", middle["plain"], "s"),
        row("full verification of an open file", middle["verify"], "s"),
        row("full verification / plain SHA-256", ratio, "", 1.15),
        row("expert2 from its bundle, verified", middle["expert"], "s"),
        row("its bundle beyond its own bytes", beyond / 1024, "KiB", 128),
        row("seal", statistics.median(seals), "s", 1),
        row("every tensor as a view, verified", middle["views"], "s"),
        row("every tensor by safetensors, nothing verified", middle["safetensors"], "s"),
        row("second verifier, memory above the interpreter", memory(sealed) / (1 << 20), "MiB", 16),
    ]


def row(what: str, value: float, unit: str, bound: float | None = None) -> dict[str, Any]:
    """One line of the result."""
    return {"what": what, "value": value, "unit": unit, "bound": bound}


def seconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes."""
    start = clock()
    call()
    return clock() - start


def views(sealed: Path) -> list[Any]:
    """Every tensor, each verified on first touch."""
    seal = s7l.open(sealed)
    return [seal.tensor(name) for name in seal.tensors]


def touched_pages(sealed: Path) -> int:
    """Pages of the mapping that opening brings into a fresh process."""
    return printed(PAGES, sealed) // 4


def memory(sealed: Path) -> int:
    """Bytes the second verifier needs above an interpreter that does nothing."""
    verifier = ROOT / "tools/s7l_verify.py"
    return 1024 * (printed(MEMORY, verifier, sealed) - printed(MEMORY))


def printed(code: str, *arguments: Path) -> int:
    """The number that a fresh process prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def write_inputs(root: Path, rng: random.Random) -> None:
    """``weights/`` and ``vocab.json`` of a model with the dimensions of s7-140m."""
    model = architecture_tree(S7_140M.model)
    (root / "weights").mkdir()
    entries = {}
    for spec in sealed_tensors(S7_140M.model):
        data = hashlib.shake_256(spec.name.encode()).digest(spec.size)
        array = np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
        array = np.maximum(array, -127) if spec.dtype == "int8" else array & 0x3FFFFFFF
        if spec.name.endswith(".residual"):
            array = np.array([16], "<i4")  # fraction bits
        np.save(root / "weights" / f"{spec.name}.npy", array)
        entry = {key: value for key, value in tensor_entry(spec).items() if key != "name"}
        entry["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
        entries[spec.name] = (
            {**entry, "exponent": 31 if spec.name.endswith("residual") else -7}
            if spec.is_fixed_point
            else entry
        )
    manifest = {"format": "s7-weights", "version": 1, "method": "per_row_int8", "model": model}
    tree = {**manifest, "tensors": entries, "provenance": {}}
    (root / "weights/manifest.json").write_text(json.dumps(tree))
    (root / "vocab.json").write_text(json.dumps(vocabulary(model["vocab"], rng)))


def vocabulary(size: int, rng: random.Random) -> dict[str, Any]:
    """Single bytes, one special token, and random merges up to ``size`` tokens."""
    tokens = [bytes([byte]) for byte in range(256)]
    known, merges = set(tokens), []
    while len(tokens) < size - 1:
        left, right = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        token = tokens[left] + tokens[right]
        if token not in known and len(token) <= 12:
            known.add(token)
            tokens.append(token)
            merges.append([left, right])
    # As training has it: the end of a document is id 0, everything else one further.
    words = [token.hex() for token in [b"<|eod|>", *tokens]]
    merges = [[left + 1, right + 1] for left, right in merges]
    tree = {"format": "s7-vocab", "version": 1, "tokens": words, "merges": merges}
    return {**tree, "specials": {"<|eod|>": 0}, "pattern": PATTERNS[0]}


if __name__ == "__main__":
    cli.main(main)
