"""A server as a process, and what its answers hold."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from s7jax.runtime.proof import parse
from s7jax.s7l.canonical import decode

ROOT = Path(__file__).parents[2]
HANGS = 600  # seconds after which something hangs: nothing here is asked to be fast


def start(sealed, *flags, script=None):
    """A server that is ready, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = str(script or ROOT / "tools/serve.py")
    command = [sys.executable, script, str(sealed), "--port", str(port), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: ready(process, url))
    return process, url


def ready(process, url):
    assert process.poll() is None, process.stderr.read()
    try:
        return httpx.get(f"{url}/readyz", timeout=HANGS).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(holds, seconds=HANGS):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never comes to hold"
        time.sleep(0.05)


def stop(process, number=signal.SIGTERM):
    """A clean shutdown says nothing on standard error but whom it cut off."""
    process.send_signal(number)
    with process.stderr:
        assert process.wait(HANGS) in (0, -number, 128 + number)
        said = process.stderr.read()
    assert "Traceback" not in said
    return said


def ask(url, timeout=HANGS, **body):
    return httpx.post(f"{url}/v1/completions", json=body, timeout=timeout)


def proofs_of(tree):
    return [parse(decode(base64.b64decode(p), "proof")) for p in tree["s7"]["proofs"]]
