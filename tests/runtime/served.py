"""A server as a process, and what its answers hold."""

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from s7jax.runtime.proof import parse
from s7jax.s7l.canonical import decode

ROOT = Path(__file__).parents[2]
HANGS = 600  # seconds after which something hangs: nothing here is asked to be fast


class Server:
    """A server that is ready, at ``url``; leave it and it is stopped."""

    def __init__(self, sealed, *flags, script=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        script = str(script or ROOT / "tools/serve.py")
        command = [sys.executable, script, str(sealed), "--port", str(port), *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed on leaving
        self.process = subprocess.Popen(command, env=environment, stderr=self._said)

    def __enter__(self):
        wait_until(self._ready)
        return self

    def _ready(self):
        assert self.process.poll() is None, self.said()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=HANGS).status_code == 200

    def said(self):
        """Everything on standard error."""
        self._said.seek(0)
        return self._said.read()

    def ended(self, number=signal.SIGTERM):
        """Its exit code; a clean end needs no traceback."""
        if number:
            self.process.send_signal(number)
        code = self.process.wait(HANGS)
        assert "Traceback" not in self.said()
        return code

    def __exit__(self, *_):
        with self._said:
            if self.process.poll() is None:
                assert self.ended() in (0, -signal.SIGTERM)


def wait_until(holds, seconds=HANGS):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never comes to hold"
        time.sleep(0.05)


def ask(url, timeout=HANGS, **body):
    return httpx.post(f"{url}/v1/completions", json=body, timeout=timeout)


def proofs_of(tree):
    return [parse(decode(base64.b64decode(p), "proof")) for p in tree["s7"]["proofs"]]
