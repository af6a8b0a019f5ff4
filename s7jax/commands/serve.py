"""Serve a sealed model over HTTP: OpenAI-compatible completions, each with its proof.

A page at /, POST /v1/completions, GET /v1/models, /docs, /healthz, /readyz, /metrics. Listens on
this machine alone unless told otherwise, and then asks for a bearer token from --token-file.
Answers on their way at SIGTERM have --grace seconds.

Examples:
  s7jax serve model.s7l
  s7jax serve model.s7l --port 8080 --rows 16 --waiting 256
  s7jax serve model.s7l --host 0.0.0.0 --token-file secret --allow-host s7.example.org

  curl localhost:8000/v1/completions --json '{"prompt": "def main():", "max_tokens": 32}'
"""

import ipaddress
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from s7jax import extras, runtime
from s7jax.errors import UsageError
from s7jax.runtime.compute import ENGINES
from s7jax.terminal import cli, compiling
from s7jax.train.folder import newest_seal


def add_flags(p: ArgumentParser) -> None:
    """The command line."""
    p.add_argument("model", type=Path, nargs="?", help="sealed model (default: newest run's)")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--name", help="of the model in requests (default: the file's)")
    p.add_argument("--engine", choices=ENGINES, default="auto", help="native C, or XLA's devices")
    p.add_argument("--threads", type=int, metavar="N", help="of the native engine (default: all)")
    p.add_argument("--mesh", default="1x1", metavar="[PxDx]M", help="XLA devices, such as 4x2")
    p.add_argument("--rows", type=int, default=8, help="answers in one batch")
    p.add_argument("--waiting", type=int, default=64, help="answers that may queue")
    p.add_argument("--seconds", type=float, default=120.0, help="until an answer is cut off")
    p.add_argument("--grace", type=float, default=10.0, help="seconds for answers at SIGTERM")
    p.add_argument("--token-file", type=Path, help="file with bearer tokens, one in a line")
    more: dict[str, Any] = {"nargs": "+", "action": "extend"}
    p.add_argument("--allow-host", **more, metavar="NAME", help="names it may be asked under")
    p.add_argument("--allow-origin", **more, default=[], metavar="URL", help="pages that may")
    cli.add_trust_flags(p)


def check(args: Namespace) -> None:
    """Refuse values out of range."""
    if not args.host:
        raise UsageError("--host is empty; expected an address or a name of this machine")
    if not 0 <= args.port < 1 << 16:
        raise UsageError(f"--port {args.port}: expected 0 to 65535")
    # So that no NaN passes.
    if args.rows < 1 or args.waiting < 0 or not (args.seconds > 0 and args.grace > 0):
        raise UsageError("--rows, --seconds, --grace: expected more than 0; --waiting: at least 0")


def main(args: Namespace) -> None:
    """Open the model, serve until told to stop."""
    check(args)
    try:
        from s7jax.server.app import LOCAL, application  # noqa: PLC0415 the packages of an extra
        from s7jax.server.limits import Limits  # noqa: PLC0415
        from s7jax.server.listen import bound, run  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise UsageError(f"{e.name} is missing: {extras.how_to_install('serve')}") from None
    tokens = _tokens(args.token_file) if args.token_file else []
    if not tokens and not _is_local(args.host):
        raise UsageError(f"--host {args.host} is open to others: it needs a --token-file")
    path = args.model or newest_seal()
    sockets = bound(args.host, args.port)
    limits = Limits(rows=args.rows, waiting=args.waiting, seconds=args.seconds, grace=args.grace)
    how = {"engine": args.engine, "threads": args.threads, "mesh": args.mesh}
    how |= {"root": args.root, "trust": args.trust}
    # Who knows the token has not come from some web page that a browser was led to.
    hosts = args.allow_host or (LOCAL if _is_local(args.host) else ["*"])
    with runtime.open(path, **how) as model:
        compiling.announce()
        name = args.name or path.stem
        host = f"[{args.host}]" if ":" in args.host else args.host
        port = sockets[0].getsockname()[1]
        app = application(
            model, name, limits, tokens=tokens, hosts=hosts, origins=args.allow_origin
        )
        print(f"{name}: root {model.seal.root.hex()}, http://{host}:{port}", flush=True)
        run(app, app.state.worker, limits, sockets)


def _tokens(path: Path) -> list[str]:
    try:
        tokens = path.read_text("ascii").split()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--token-file {path}: {e}; expected ASCII, a token in a line") from None
    if not tokens:
        raise UsageError(f"--token-file {path}: no token in it; expected one in a line")
    return tokens


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
