"""Sixty-four clients of the worst kind, and an honest one among them."""

import asyncio
import json
import random
import time

import httpx
import pytest
from served import HANGS, Server, proofs_of, wait_until

from s7jax.runtime.model import Model

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PROMPTS = ["a", "def f(x):", "2 + 2 =", "é"]
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


def framed(body, length=None):
    return HEAD + b"Content-Length: %d\r\n\r\n" % (length or len(body)) + body


class Chaos:
    """Clients that do not stop before their time is over."""

    def __init__(self, url, wanted, seconds, seed):
        self.host, self.port = url.removeprefix("http://").split(":")
        self.wanted, self.until = wanted, time.monotonic() + seconds
        self.seed, self.counts, self.wrong = seed, dict.fromkeys(("bad", "good", "left"), 0), []

    async def run(self, clients):
        await asyncio.gather(*(self._client(random.Random(self.seed + i)) for i in range(clients)))

    async def _client(self, rng):
        acts = [self._bad, self._bad, self._leave, self._leave, self._half, self._slow, self._good]
        while time.monotonic() < self.until:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    await rng.choice(acts)(reader, writer, rng)
                finally:
                    writer.close()
            except OSError:
                await asyncio.sleep(0.05)

    async def _bad(self, reader, writer, rng):
        """Requests that are none, on one connection."""
        for _ in range(20):
            writer.write(framed(rng.choice(BAD)))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            self.counts["bad"] += 1
            if not head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 429")):
                self.wrong.append(head)

    async def _leave(self, reader, writer, rng):
        """Asks for much and goes away."""
        body = {"prompt": "a", "max_tokens": 60, "stream": rng.random() < 0.5}
        writer.write(framed(json.dumps(body).encode()))
        await asyncio.sleep(rng.random() / 4)
        self.counts["left"] += 1

    async def _half(self, reader, writer, rng):
        writer.write(framed(b'{"prompt":', length=5_000))
        await asyncio.sleep(rng.random())

    async def _slow(self, reader, writer, rng):
        for byte in HEAD[: rng.randrange(len(HEAD))]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
            if time.monotonic() > self.until:
                return

    async def _good(self, reader, writer, rng):
        prompt = rng.choice(PROMPTS)
        body = json.dumps({"prompt": prompt, "max_tokens": 8}).encode()
        writer.write(framed(body).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        head, _, data = (await reader.read()).partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 429"):
            return
        self.counts["good"] += 1
        if not (head.startswith(b"HTTP/1.1 200") and right(json.loads(data), self.wanted[prompt])):
            self.wrong.append(head)


def right(tree, wanted):
    """Text, ids and proof are those of the library."""
    return tree["choices"][0]["text"] == wanted.text and (
        [p.chain for p in proofs_of(tree)] == [wanted.proof.chain]
    )


def resident(process):
    """Memory in use, in KiB."""
    with open(f"/proc/{process.pid}/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def latencies(url, count, wanted):
    """Of an honest client, at an address of its own, that asks one thing after another."""
    found = []
    own = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=url, transport=own, timeout=HANGS) as client:
        for i in range(count):
            prompt = PROMPTS[i % len(PROMPTS)]
            began = time.monotonic()
            answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 8})
            found.append(time.monotonic() - began)
            assert answer.status_code == 200, answer.text
            assert right(answer.json(), wanted[prompt])
    return sorted(found)


async def storm(server, wanted, seconds, clients, seed):
    chaos = Chaos(server.url, wanted, seconds, seed)
    running = asyncio.create_task(chaos.run(clients))
    honest = await asyncio.to_thread(latencies, server.url, 40, wanted)
    await running
    return chaos, honest


def weather(sealed, seal, seconds, clients):
    model = Model(seal)
    wanted = {prompt: model.generate(prompt, max_new_tokens=8) for prompt in PROMPTS}
    with Server(sealed, "--waiting", "512") as server:
        alone = latencies(server.url, 40, wanted)
        asyncio.run(storm(server, wanted, seconds / 4, clients, seed=0))  # what grows once
        before = resident(server.process)
        chaos, honest = asyncio.run(storm(server, wanted, seconds, clients, seed=100))
        wait_until(lambda: httpx.get(f"{server.url}/healthz").json()["open"] == 0)
        grown = resident(server.process) / before
        wanted_again = latencies(server.url, 8, wanted)
        print(chaos.counts, f"alone {alone[20]:.3f} s, honest {honest[20]:.3f} s")
        print(f"memory × {grown:.3f}")
    assert chaos.wrong == []
    assert len(wanted_again) == 8
    assert min(chaos.counts.values()) > 0
    return chaos, grown


def test_a_short_storm(sealed, seal):
    """No wrong answer, no place lost."""
    weather(sealed, seal, seconds=4, clients=16)


@pytest.mark.long(minutes=7)
def test_five_minutes_of_chaos(sealed, seal):
    """And memory stays: what 10,000 malformed requests leave behind is nothing."""
    chaos, grown = weather(sealed, seal, seconds=300, clients=64)
    assert chaos.counts["bad"] >= 10_000
    assert grown < 1.05
