"""Measure the server: tokens per second and time to the first token at 1, 4 and 16 clients.

Each client streams one answer after another from a server process on this machine; clients and
server share its cores. Where llama_cpp.server is installed (extra ``bench``) it is measured in the
same way on a random Q8_0 file of as many active parameters.

Examples:
  python benchmarks/serve.py runs/demo/model/moe.s7l
  python benchmarks/serve.py --answers 4 --json
"""

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from native import write_gguf

from s7jax import s7l
from s7jax.data.tokenizer import Tokenizer
from s7jax.terminal import cli
from s7jax.train.folder import newest_seal

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 4, 16)
PROMPT = "def main():\n    "


def main() -> None:
    """Start each server, ask it, print."""
    parser = cli.parser(__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="sealed model (default: newest run's)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--answers", type=int, default=16, help="of each client")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in servers(args, Path(folder)):
            with serving(command) as url:
                for clients in CLIENTS:
                    rows[f"{name}, {clients} clients"] = measure(url, clients, args)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for name, row in rows.items():
        print(name.ljust(28), *(f"{key} {value:,.4g}" for key, value in row.items()), sep="  ")


def servers(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and command of each server; a port is added."""
    path = args.file or newest_seal()
    yield "s7jax", [sys.executable, str(ROOT / "tools/serve.py"), str(path)]
    seal = s7l.open(path)
    words = Tokenizer.from_vocabulary(seal.vocabulary.file_tree())
    if gguf := write_gguf(folder, seal.manifest.dimensions, words):
        command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf)]
        # By default it breaks off an answer when another client asks.
        yield "llama_cpp.server", [*command, "--interrupt_requests", "False"]


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """A server that lists its models, by its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*command, "--port", port], stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/models", timeout=60).is_success:
                    break
            if process.poll() is not None:
                raise SystemExit(f"error: {command[1]} does not start")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(url: str, clients: int, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of all clients, and first-token latencies in milliseconds."""

    def client(_: int) -> tuple[int, list[float]]:
        with httpx.Client(base_url=url, timeout=600) as session:
            found = [answer(session, args.tokens) for _ in range(args.answers)]
        return sum(count for count, _ in found), [first for _, first in found]

    with httpx.Client(base_url=url, timeout=600) as session:
        answer(session, args.tokens)  # warm
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        found = list(pool.map(client, range(clients)))
        seconds = time.perf_counter() - began
    firsts = [1_000 * first for _, own in found for first in own]
    return {
        "tokens/s": sum(count for count, _ in found) / seconds,
        "first token p50, ms": statistics.median(firsts),
        "p99, ms": sorted(firsts)[min(len(firsts) - 1, round(0.99 * len(firsts)))],
    }


def answer(session: httpx.Client, tokens: int) -> tuple[int, float]:
    """Stream one answer: its tokens, and seconds to the first."""
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 1, "seed": 1, "stream": True}
    began, first, count, choice = time.perf_counter(), 0.0, 0, {"finish_reason": None}
    with session.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - began
            choice = json.loads(line[6:])["choices"][0]
            count += 1  # not every token is a character; but an answer of full length has them all
    return tokens if choice["finish_reason"] == "length" else count, first


if __name__ == "__main__":
    cli.main(main)
