"""The server as a process, asked by OpenAI's own client."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from s7jax.runtime import Engine, Request
from s7jax.runtime.model import Model
from s7jax.runtime.proof import parse
from s7jax.runtime.replay import by_specification, replay
from s7jax.runtime.server import application
from s7jax.runtime.worker import Limits, Worker
from s7jax.s7l.canonical import decode

ROOT = Path(__file__).parents[2]
HANGS = 600  # seconds after which something hangs: nothing here is asked to be fast
PROMPTS = ["a", "def f(x):", "2 + 2 =", "", "\x01\x02\x03\x04 control codes are data", "é"]


def start(sealed, *flags, env=()):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "tools/serve.py"), str(sealed), "--port", str(port)]
    process = subprocess.Popen(
        [*command, *flags], env={**os.environ, **dict(env)}, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(f"{url}/healthz", timeout=HANGS).raise_for_status()
            return process, url
        except httpx.ConnectError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)


def stop(process, number=signal.SIGTERM):
    """A clean shutdown says nothing on standard error."""
    process.send_signal(number)
    with process.stderr:
        assert process.wait(HANGS) in (0, -number, 128 + number)
        assert "Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def server(sealed):
    process, url = start(
        sealed, "--rows", "2", "--waiting", "30", "--seconds", str(HANGS), "--name", "tiny"
    )
    yield url
    stop(process)


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(seal):
    return Model(seal)


@pytest.fixture(scope="module")
def wanted(model):
    """Text of each prompt's greedy answer of 8 tokens, from the library."""
    engine, answers = Engine(model.compute), {}
    for prompt in PROMPTS:
        found = engine.submit(Request(model.prompt(prompt), model.policy(max_new_tokens=8)))
        engine.run()
        answers[prompt] = found.output
    return answers


def text_of(model, ids):
    stops = model.policy().stop
    return model.tokenizer.decode(i for i in ids if i not in stops).decode("utf-8", "replace")


def proof_of(response):
    packed = response.s7["proofs"][0]
    return parse(decode(base64.b64decode(packed), "proof"))


def test_a_completion_with_its_root_and_proof(client, model, seal, wanted):
    for prompt in PROMPTS:
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8)
        assert answer.choices[0].text == text_of(model, wanted[prompt])
        assert answer.usage.completion_tokens == len(wanted[prompt])
        assert answer.s7["root"] == seal.root.hex()
        proof = proof_of(answer)
        assert proof.output == wanted[prompt]
        replay(proof, seal, by_specification(seal))


def test_streaming_gives_the_same_text(client, model, wanted):
    parts = client.completions.create(model="tiny", prompt="a", max_tokens=8, stream=True)
    pieces = list(parts)
    assert "".join(p.choices[0].text for p in pieces) == text_of(model, wanted["a"])
    assert [p.choices[0].finish_reason for p in pieces][-1] in ("length", "stop")
    assert proof_of(pieces[-1]).output == wanted["a"]


def test_sixteen_clients_at_once_get_what_one_alone_gets(client, wanted):
    def ask(i):
        prompt = PROMPTS[i % len(PROMPTS)]
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8)
        return prompt, proof_of(answer)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    chains = {}
    for prompt, proof in found:
        assert proof.output == wanted[prompt]
        assert chains.setdefault(prompt, proof.chain) == proof.chain


def test_several_prompts_and_ids(client, model, wanted):
    answer = client.completions.create(model="tiny", prompt=PROMPTS[:3], max_tokens=8)
    texts = [choice.text for choice in answer.choices]
    assert texts == [text_of(model, wanted[p]) for p in PROMPTS[:3]]
    ids = list(model.prompt("a").ids)
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=8)
    assert answer.choices[0].text == text_of(model, wanted["a"])


def test_a_seed_decides_what_is_drawn(client):
    draws = [
        client.completions.create(
            model="tiny", prompt="a", max_tokens=8, temperature=1.0, top_p=0.95, seed=seed
        )
        .choices[0]
        .text
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_a_stop_string_ends_the_text_before_it(client, model, wanted):
    text = text_of(model, wanted["2 + 2 ="])
    stop = next(c for c in text[1:] if c.isascii())  # a replaced byte is no text to stop at
    answer = client.completions.create(model="tiny", prompt="2 + 2 =", max_tokens=8, stop=stop)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, None),
        ({}, "prompt: expected"),
        ({"prompt": 3}, "prompt: expected"),
        ({"prompt": "a" * 500}, "expected 1 to 63"),
        ({"prompt": [300]}, "outside"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": "a", "stop": "\ud800"}, "surrogate"),
        ({"prompt": "a", "temperature": 10**400}, "temperature: int too large"),
        ({"prompt": "a", "temperature": "hot"}, "temperature: found 'hot'"),
        ({"prompt": "a", "temperature": -1}, "temperature_q16"),
        ({"prompt": "a", "max_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "logprobs": 3}, "logprobs is not supported"),
        ({"prompt": "a", "colour": 1}, "unknown field 'colour'"),
        ({"prompt": "a", "stop": [""]}, "stop: expected"),
        ({"prompt": "a", "model": "gpt"}, "no model 'gpt'"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server, fields, message):
    asked = json.dumps(fields)  # with lone surrogates escaped, as JSON may
    answer = httpx.post(f"{server}/v1/completions", content=asked, timeout=HANGS)
    if message is None:
        assert answer.status_code == 200
        return
    assert answer.status_code in (400, 404)
    assert message in answer.json()["error"]["message"]


def test_not_json_and_too_large(server):
    assert httpx.post(f"{server}/v1/completions", content=b"{").status_code == 400
    deep = httpx.post(f"{server}/v1/completions", content=b"[" * 100_000)
    assert deep.status_code == 400
    large = httpx.post(f"{server}/v1/completions", content=b" " * (2 << 20))
    assert large.status_code == 413


def test_models_health_and_metrics(server, client, seal):
    entry = client.models.list().data[0]
    assert entry.id == "tiny"
    assert entry.root == seal.root.hex()
    assert httpx.get(f"{server}/healthz").json()["ok"] is True
    text = httpx.get(f"{server}/metrics").text
    assert 's7_requests_total{end="length"}' in text
    assert "s7_open_requests 0.0" in text


def test_a_client_that_goes_away_frees_its_place(server):
    body = {"prompt": "a", "max_tokens": 60, "stream": True}
    for _ in range(4):
        with httpx.stream("POST", f"{server}/v1/completions", json=body, timeout=HANGS) as answer:
            next(answer.iter_lines())
    until = time.monotonic() + HANGS
    while httpx.get(f"{server}/healthz", timeout=HANGS).json()["open"]:
        assert time.monotonic() < until, "places are still held"
        time.sleep(0.1)


def test_a_full_queue_says_so_and_a_slow_answer_is_cut_off(model, seal, monkeypatch):
    """The engine stands still until the queue was full and the time was up."""
    goes_on, timed_out, step = threading.Event(), threading.Event(), Engine.step
    cut = Worker.cut
    monkeypatch.setattr(Engine, "step", lambda engine: goes_on.wait() and step(engine))
    monkeypatch.setattr(Worker, "cut", lambda *args: (cut(*args), timed_out.set(), goes_on.set()))
    api, body = "/v1/completions", {"prompt": "a", "max_tokens": 60}
    limits = Limits(rows=1, waiting=0, seconds=0.5)
    with TestClient(application(model, "tiny", limits)) as client, ThreadPoolExecutor(1) as other:
        first = other.submit(client.post, api, json=body)
        while not client.get("/healthz").json()["open"]:
            time.sleep(0.01)
        assert client.post(api, json=body).status_code == 429
        done = first.result(HANGS).json()
    assert timed_out.is_set()
    assert done["usage"]["completion_tokens"] < 60
    proof = parse(decode(base64.b64decode(done["s7"]["proofs"][0]), "proof"))
    assert proof.end == "time"
    replay(proof, seal, by_specification(seal))


def test_open_to_others_a_token_is_needed(sealed):
    command = [sys.executable, str(ROOT / "tools/serve.py"), str(sealed), "--host", "0.0.0.0"]
    environment = {k: v for k, v in os.environ.items() if k != "S7_TOKEN"}
    refused = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=HANGS
    )
    assert refused.returncode == 2
    assert "S7_TOKEN" in refused.stderr
    process, url = start(sealed, env={"S7_TOKEN": "secret"}.items())
    try:
        assert httpx.get(f"{url}/v1/models").status_code == 401
        wrong = {"Authorization": "Bearer other"}
        assert httpx.get(f"{url}/v1/models", headers=wrong).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200
        body = json.dumps({"prompt": "a"})
        assert httpx.post(f"{url}/v1/completions", content=body).status_code == 401
    finally:
        stop(process, signal.SIGINT)
