"""Serve a sealed model over HTTP: OpenAI-compatible completions, each with its proof.

POST /v1/completions (streaming too), GET /v1/models, /healthz, /metrics. Listens on this machine
alone unless told otherwise, and then asks for a bearer token, from --token-file or the variable
S7_TOKEN. Stops in good order on SIGTERM and SIGINT.

Examples:
  python tools/serve.py model.s7l
  python tools/serve.py model.s7l --port 8080 --rows 16 --waiting 256
  S7_TOKEN=secret python tools/serve.py model.s7l --host 0.0.0.0

  curl localhost:8000/v1/completions -d '{"prompt": "def main():", "max_tokens": 32}'
"""

import argparse
import ipaddress
import os
from pathlib import Path

from s7jax import runtime
from s7jax.errors import UsageError
from s7jax.runtime.compute import ENGINES
from s7jax.terminal import cli, compiling
from s7jax.train.folder import newest

try:
    import uvicorn

    from s7jax.runtime.server import application
    from s7jax.runtime.worker import Limits
except ImportError as e:
    raise SystemExit(f"error: {e.name} is missing: pip install 's7jax[serve]'") from e


def parse() -> argparse.Namespace:
    """The command line."""
    p = cli.parser(__doc__)
    p.add_argument("model", type=Path, nargs="?", help="sealed model (default: newest run's)")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--name", help="of the model in requests (default: the file's)")
    p.add_argument("--engine", choices=ENGINES, default="auto", help="native C, or XLA's devices")
    p.add_argument("--mesh", default="1x1", metavar="[PxDx]M", help="XLA devices, such as 4x2")
    p.add_argument("--rows", type=int, default=8, help="answers in one batch")
    p.add_argument("--waiting", type=int, default=64, help="requests that may queue")
    p.add_argument("--seconds", type=float, default=120.0, help="until an answer is cut off")
    p.add_argument("--token-file", type=Path, help="file with the bearer token to ask for")
    p.add_argument("--root", type=bytes.fromhex, metavar="HEX", help="the root it must have")
    p.add_argument("--trust", type=Path, nargs="+", default=[], metavar="PUBKEY", help="signers")
    args = p.parse_args()
    if not 0 <= args.port < 1 << 16:
        raise UsageError(f"--port {args.port}: expected 0 to 65535")
    if args.rows < 1 or args.waiting < 0 or args.seconds <= 0:
        raise UsageError("--rows, --seconds: expected more than 0; --waiting: at least 0")
    return args


def main() -> None:
    """Open the model, serve until told to stop."""
    args = parse()
    token = args.token_file.read_text().strip() if args.token_file else os.environ.get("S7_TOKEN")
    if not token and not _is_local(args.host):
        raise UsageError(f"--host {args.host} is open to others: set S7_TOKEN or --token-file")
    path = args.model or newest().sealed
    limits = Limits(rows=args.rows, waiting=args.waiting, seconds=args.seconds)
    how = {"engine": args.engine, "mesh": args.mesh, "root": args.root, "trust": args.trust}
    with runtime.open(path, **how) as model:
        compiling.announce()
        name = args.name or path.stem
        print(f"{name}: root {model.seal.root.hex()}, http://{args.host}:{args.port}", flush=True)
        app = application(model, name, limits, token or None)
        uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    cli.main(main)
