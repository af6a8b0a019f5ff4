"""Clients of the worst kind (storm.py), and an honest one among them."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import storm
from served import HANGS, ROOT, Server, ask, proofs_of, wait_until

from s7jax import s7l
from s7jax.runtime.model import Model
from s7jax.runtime.replay import by_specification, replay

PROMPTS = ["a", "def f(x):", "2 + 2 =", "é"]


def expected(sealed):
    """What the library answers: text, and the proof's chain."""
    model = Model(s7l.open(sealed))
    answers = {prompt: model.generate(prompt, max_new_tokens=8) for prompt in PROMPTS}
    return {prompt: [a.text, a.proof.chain.hex()] for prompt, a in answers.items()}


class Storms:
    """A process of clients that is told to misbehave for a while, and adds up what it did."""

    def __init__(self, url, wanted, folder, clients, addresses, idle):
        self.url, self.counts = url, {}
        (folder / "wanted.json").write_text(json.dumps(wanted))
        command = [sys.executable, str(Path(storm.__file__)), url, str(clients), str(addresses)]
        self.process = subprocess.Popen(
            [*command, str(folder / "wanted.json"), *["idle"] * idle],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, seconds, seed):
        self.process.stdin.write(f"{seconds} {seed}\n")
        self.process.stdin.flush()

    def end(self):
        """Nothing was wrong, and no place is left taken."""
        told = json.loads(self.process.stdout.readline())
        assert told["wrong"] == []
        for act, count in told["counts"].items():
            self.counts[act] = self.counts.get(act, 0) + count
        wait_until(lambda: httpx.get(f"{self.url}/healthz", timeout=HANGS).json()["open"] == 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(HANGS)


def latencies(url, wanted, seconds):
    """Of an honest client at an address of its own, that asks again and again for a while."""
    own, until, found = (
        httpx.HTTPTransport(local_address="127.0.0.2"),
        time.monotonic() + seconds,
        [],
    )
    with httpx.Client(base_url=url, transport=own, timeout=HANGS) as client:
        while time.monotonic() < until or not found:
            prompt = PROMPTS[len(found) % len(PROMPTS)]
            began = time.monotonic()
            answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 8})
            found.append(time.monotonic() - began)
            assert answer.status_code == 200, answer.text
            assert storm.right(answer.json(), wanted[prompt])
            time.sleep(0.02)
    return found


def resident(process):
    """Memory in use, in KiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def weather(sealed, folder, turns, seconds, clients, addresses=1, idle=False):
    """Calm and storm in turns: medians of each, and memory after each storm."""
    wanted, calm, stormy, memory = expected(sealed), [], [], []
    with (
        Server(sealed) as server,
        Storms(server.url, wanted, folder, clients, addresses, idle) as storms,
    ):
        for turn in range(turns):
            calm += latencies(server.url, wanted, seconds / 3)
            storms.begin(seconds, seed=100 * turn)
            stormy += latencies(server.url, wanted, 0.9 * seconds)
            storms.end()
            memory.append(resident(server.process))
        tree = ask(server.url, prompt="a", max_tokens=8).json()
    seal = s7l.open(sealed)
    replay(*proofs_of(tree), seal, by_specification(seal))
    ratio = statistics.median(stormy) / statistics.median(calm)
    print(
        f"{storms.counts}; alone {1e3 * statistics.median(calm):.1f} ms, in a storm × {ratio:.2f}"
    )
    print("memory, KiB:", memory)
    return storms.counts, memory, ratio


def test_a_short_storm(sealed, tmp_path):
    """No wrong answer, no place lost."""
    counts, _, _ = weather(sealed, tmp_path, turns=1, seconds=6, clients=16)
    assert counts["bad"] > 0


@pytest.mark.long(minutes=8)
@pytest.mark.parametrize("addresses", [1, 64])
def test_five_minutes_of_chaos(tmp_path, addresses):
    """And 10,000 malformed requests leave nothing behind, and hardly slow an honest client down.

    What is compared was measured in turns on this machine, so its own load cancels out.
    """
    sealed = ROOT / "s7jax/sample/nano.s7l"
    counts, memory, ratio = weather(
        sealed, tmp_path, turns=30, seconds=10, clients=64, addresses=addresses, idle=True
    )
    assert counts["bad"] >= 10_000
    assert min(counts[act] for act in ("good", "left", "half", "slow")) > 0
    assert memory[-1] < 1.05 * memory[2]
    assert ratio < 2
