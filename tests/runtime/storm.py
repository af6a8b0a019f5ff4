"""Clients of the worst kind, as a process of its own: told "SECONDS SEED" it says what happened.

It may run only on time that nobody else wants (Linux's SCHED_IDLE): on a machine that it shares
with the server it would else be the generator that makes an honest client wait, and not the server.

Arguments: address of the server, clients, addresses that they share, and a JSON file that says for
each prompt the text and the proof's chain that are right; "idle", for such time alone.
"""

import asyncio
import base64
import json
import os
import random
import sys
import time
from pathlib import Path

from s7jax.runtime.proof import parse
from s7jax.s7l.canonical import decode

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
BAD = [
    b"{",
    b"[]",
    b'{"prompt": 5}',
    b'{"prompt": "a", "max_tokens": 18446744073709551616}',
    b'{"prompt": "a", "temperature": 1e999}',
    b'{"prompt": "a", "stop": {"a": 1}}',
    b'{"prompt": ' + b"[" * 3_000,
    b'{"prompt": "\\ud800"}',
    b"\x00\xff" * 50,
]


def framed(body, length=None, more=b""):
    return HEAD + more + b"Content-Length: %d\r\n\r\n" % (length or len(body)) + body


class Storm:
    """Clients that do not stop before their time is over."""

    def __init__(self, url, addresses, wanted, seconds, seed):
        self.addresses = addresses
        self.host, self.port = url.removeprefix("http://").split(":")
        self.wanted, self.until, self.seed = wanted, time.monotonic() + seconds, seed
        self.counts = dict.fromkeys(("bad", "good", "left", "half", "slow", "refused"), 0)
        self.wrong = []

    async def run(self, clients):
        await asyncio.gather(*(self._client(i) for i in range(clients)))

    async def _client(self, number):
        rng = random.Random(self.seed + number)
        own = f"127.0.1.{1 + number % self.addresses}", 0
        acts = [self._bad, self._bad, self._leave, self._leave, self._half, self._slow, self._good]
        while time.monotonic() < self.until:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=own)
                try:
                    await rng.choice(acts)(reader, writer, rng)
                finally:
                    writer.transport.abort() if rng.random() < 0.5 else writer.close()
            except (OSError, EOFError):
                self.counts["refused"] += 1
                await asyncio.sleep(0.05)

    async def _bad(self, reader, writer, rng):
        """Requests that are none, on one connection."""
        for _ in range(20):
            if time.monotonic() > self.until:
                return
            writer.write(framed(rng.choice(BAD)))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            self.counts["bad"] += 1
            if not head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 429")):
                self.wrong.append(repr(head))

    async def _leave(self, reader, writer, rng):
        """Asks for much and goes away."""
        body = {"prompt": "a", "max_tokens": 60, "stream": rng.random() < 0.5}
        writer.write(framed(json.dumps(body).encode()))
        await asyncio.sleep(rng.random() / 4)
        self.counts["left"] += 1

    async def _half(self, reader, writer, rng):
        writer.write(framed(b'{"prompt":', length=5_000))
        await asyncio.sleep(rng.random())
        self.counts["half"] += 1

    async def _slow(self, reader, writer, rng):
        for byte in HEAD[: rng.randrange(len(HEAD))]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
            if time.monotonic() > self.until:
                break
        self.counts["slow"] += 1

    async def _good(self, reader, writer, rng):
        prompt = rng.choice(list(self.wanted))
        body = json.dumps({"prompt": prompt, "max_tokens": 8}).encode()
        writer.write(framed(body, more=CLOSE))
        head, _, data = (await reader.read()).partition(b"\r\n\r\n")
        if not head or head.startswith(b"HTTP/1.1 429"):
            self.counts["refused"] += 1
            return
        self.counts["good"] += 1
        if not (head.startswith(b"HTTP/1.1 200") and right(json.loads(data), self.wanted[prompt])):
            self.wrong.append(repr(head))


def right(tree, wanted):
    """One answer's text, and all that its proof binds, are those of the library."""
    proof = parse(decode(base64.b64decode(tree["s7"]["proofs"][0]), "proof"))
    return [tree["choices"][0]["text"], proof.chain.hex()] == wanted


def main(url, clients, addresses, wanted, idle=""):
    if idle and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    wanted = json.loads(Path(wanted).read_text())
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, seed = line.split()
        storm = Storm(url, int(addresses), wanted, float(seconds), int(seed))
        asyncio.run(storm.run(int(clients)))
        print(json.dumps({"counts": storm.counts, "wrong": storm.wrong[:10]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
