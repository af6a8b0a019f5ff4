r"""Preparing data: megabytes a second, memory, and datatrove's tokenisation beside it.

The same text in the same run: the built-in corpus over and over, each copy of a document with its
number, as JSON lines in eight files. Ours is the whole of tools/prepare.py with a given tokenizer
(reading, counting, de-duplicating, tokenising, shuffling, packing, hashing); datatrove's is
JsonlReader and DocumentTokenizer with its shuffle, and the same tokenizer.json.

On a machine with other work, look at the CPU seconds: they are what the projection is made of.

  python benchmarks/prepare.py --megabytes 100
  python benchmarks/prepare.py --megabytes 1000 --workers 1 2 --skip-datatrove
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from s7jax.config import PRESETS
from s7jax.data import builtin
from s7jax.data.prepare import prepare
from s7jax.data.prepared import SPLITS, Prepared
from s7jax.terminal import cli

ROOT = Path(__file__).parents[1]
PRESET = "s7-nano"
FILES = 8
TOKENS, CORES = 50e9, 64  # the specification's Phase 1, and a machine for it

DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
source, tokenizer, out, workers = sys.argv[1:]
if __name__ == "__main__":
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(source),
            DocumentTokenizer(
                output_folder=out + "/tokens",
                tokenizer_name_or_path=tokenizer,
                local_working_dir=out + "/local",
                eos_token="<|eod|>",
            ),
        ],
        tasks=%d,
        workers=int(workers),
        logging_dir=out + "/logs",
    ).run()
"""


def run() -> None:
    """Write the text, prepare it in every way, report."""
    flags = cli.parser(__doc__)
    flags.add_argument("--megabytes", type=int, default=100, help="of text (default: 100)")
    flags.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    flags.add_argument("--skip-datatrove", action="store_true")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="s7jax-prepare-") as name:
        folder = Path(name)
        size = write_text(folder / "text", args.megabytes * 1_000_000)
        tokenizer = learn_tokenizer(folder)
        table = Table(title=f"{size / 1e6:,.0f} MB of text, {FILES} files, vocabulary of {PRESET}")
        columns = (
            "",
            "workers",
            "seconds",
            "CPU s",
            "cores busy",
            "MB/s",
            "MB a CPU s",
            "peak MB",
        )
        for column in columns:
            table.add_column(column, justify="right")
        rates = {}
        for workers in args.workers:
            out = folder / f"ours{workers}"
            ours = [*tool(folder / "text", out, tokenizer), "--workers", str(workers)]
            rates[workers] = measure(table, "s7jax", workers, size, ours)
            tokens = total(Prepared.load(out), "tokens") / total(Prepared.load(out), "bytes")
            if not args.skip_datatrove:
                script = folder / "theirs.py"
                script.write_text(DATATROVE % FILES)
                theirs = [sys.executable, script, folder / "text", tokenizer]
                theirs += [folder / f"theirs{workers}", workers]
                measure(table, "datatrove", workers, size, list(map(str, theirs)))
        Console(width=None if sys.stdout.isatty() else 110).print(table)
        rate = rates[max(rates)]
        hours = TOKENS / tokens / (rate * CORES) / 3600
        print(
            f"{TOKENS:.0e} tokens at {tokens:.3f} tokens a byte, {rate / 1e6:.2f} MB a CPU "
            f"second on {CORES} busy cores: {TOKENS / tokens / 1e9:,.0f} GB, {hours:.2f} hours "
            "= tokens / (tokens per byte) / (bytes per CPU second x cores) / 3600"
        )


def write_text(folder: Path, size: int) -> int:
    """Distinct documents of about so many bytes; the bytes there are."""
    folder.mkdir()
    written = copy = 0
    files = [(folder / f"{i}.jsonl").open("w") for i in range(FILES)]
    while written < size:
        for domain in builtin.LICENSES:
            for i, document in enumerate(builtin.documents(domain)):
                text = f"{copy}\n{document.text}"
                files[i % FILES].write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                if written >= size:
                    break
        copy += 1
    for file in files:
        file.close()
    return written


def learn_tokenizer(folder: Path) -> Path:
    """The tokenizer of the preset, learned from the built-in corpus."""
    preset = PRESETS[PRESET]
    prepare(
        None,
        folder / "builtin",
        domains=preset.domains,
        vocab=preset.model.vocab,
        context=preset.model.context,
    )
    return folder / "builtin" / "tokenizer.json"


def tool(text: Path, out: Path, tokenizer: Path) -> list[str]:
    """The command; the files go to the four domains, two each."""
    domains = PRESETS[PRESET].model.domains
    data = [f"{domains[i % len(domains)]}={text / f'{i}.jsonl'}" for i in range(FILES)]
    command = [sys.executable, ROOT / "tools/prepare.py", "--preset", PRESET, "--out", out]
    return [*map(str, command), "--tokenizer", str(tokenizer), "--data", *data]


def measure(table: Table, name: str, workers: int, size: int, command: list[str]) -> float:
    """Run a command, add its row, and give its bytes per second of CPU time."""
    began = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, cpu = [0], dict[int, float]()
    watcher = threading.Thread(target=lambda: watch(process, peak, cpu), daemon=True)
    watcher.start()
    _, err = process.communicate()
    seconds = time.monotonic() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{name}: {err[-3000:]}")
    used, rate = sum(cpu.values()), size / seconds
    cells: list[tuple[float, Callable[[float], str]]] = [
        (seconds, "{:.1f}".format),
        (used, "{:.1f}".format),
        (used / seconds, "{:.2f}".format),
        (rate / 1e6, "{:.2f}".format),
        (size / used / 1e6, "{:.2f}".format),
        (peak[0] / 1e6, "{:,.0f}".format),
    ]
    table.add_row(name, str(workers), *(show(value) for value, show in cells))
    return size / used


def watch(process: psutil.Popen, peak: list[int], cpu: dict[int, float]) -> None:
    """Resident memory of a process and its children together, and the CPU time of each."""
    while process.poll() is None:
        resident = 0
        for part in [process, *children(process)]:
            try:
                resident += part.memory_info().rss
                times = part.cpu_times()
                cpu[part.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], resident)
        time.sleep(0.05)


def children(process: psutil.Popen) -> list[psutil.Process]:
    """All processes below one that still is there."""
    try:
        found: list[psutil.Process] = process.children(recursive=True)
        return found
    except psutil.NoSuchProcess:
        return []


def total(prepared: Prepared, name: str) -> int:
    """A count over all domains and splits."""
    return sum(d[split][name] for d in prepared.manifest["domains"] for split in SPLITS)


if __name__ == "__main__":
    cli.main(run)
