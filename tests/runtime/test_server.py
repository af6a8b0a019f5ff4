"""The server as a process, asked by OpenAI's own client: its contract."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from served import HANGS, ROOT, Server, ask, proofs_of

from s7jax.runtime import Engine, Request
from s7jax.runtime.model import Model
from s7jax.runtime.replay import by_specification, replay

PROMPTS = ["a", "def f(x):", "2 + 2 =", "", "\x01\x02\x03\x04 control codes are data", "é"]


@pytest.fixture(scope="module")
def server(sealed):
    flags = "--rows", "2", "--waiting", "60", "--seconds", str(HANGS), "--name", "tiny"
    with Server(sealed, *flags) as found:
        yield found.url


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(seal):
    return Model(seal)


@pytest.fixture(scope="module")
def wanted(model):
    """Ids of each prompt's greedy answer of 8 tokens, from the library."""
    engine, answers = Engine(model.compute), {}
    for prompt in PROMPTS:
        found = engine.submit(Request(model.prompt(prompt), model.policy(max_new_tokens=8)))
        engine.run()
        answers[prompt] = found.output
    return answers


def text_of(model, ids):
    stops = model.policy().stop
    return model.tokenizer.decode(i for i in ids if i not in stops).decode("utf-8", "replace")


def test_a_completion_with_its_root_and_proof(client, model, seal, wanted):
    for prompt in PROMPTS:
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8)
        assert answer.choices[0].text == text_of(model, wanted[prompt])
        assert answer.usage.completion_tokens == len(wanted[prompt])
        assert answer.s7["root"] == seal.root.hex()
        (proof,) = proofs_of(answer.model_dump())
        assert proof.output == wanted[prompt]
        assert answer.choices[0].experts == [step.expert for step in proof.steps]
        replay(proof, seal, by_specification(seal))


@pytest.mark.parametrize("asked", [{}, {"n": 3, "temperature": 1, "seed": 5}, {"echo": True}])
def test_streaming_gives_the_same_answer(client, asked):
    """Text, scores and route of the pieces add up; one id, one usage, a proof for each choice."""
    asked = {"model": "tiny", "prompt": "def f", "max_tokens": 8, "logprobs": 2, **asked}
    whole = client.completions.create(**asked)
    usage = {"include_usage": True}
    chunks = list(client.completions.create(**asked, stream=True, stream_options=usage))
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    for choice, proof in zip(whole.choices, proofs_of(whole.model_dump()), strict=True):
        own = [c for c in chunks[:-1] if c.choices[0].index == choice.index]
        parts = [c.choices[0] for c in own]
        assert "".join(part.text for part in parts) == choice.text
        assert [e for part in parts for e in part.experts] == choice.experts
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            added = [v for part in parts for v in getattr(part.logprobs, name)]
            assert added == getattr(choice.logprobs, name)
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [
            choice.finish_reason
        ]
        assert [p.chain for p in proofs_of(own[-1].model_dump())] == [proof.chain]


def test_sixteen_clients_at_once_get_what_one_alone_gets(client, wanted):
    def one(i):
        prompt = PROMPTS[i % len(PROMPTS)]
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8)
        return prompt, proofs_of(answer.model_dump())[0]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(16)))
    chains = {}
    for prompt, proof in found:
        assert proof.output == wanted[prompt]
        assert chains.setdefault(prompt, proof.chain) == proof.chain


def test_a_prompt_has_four_forms(client, model, wanted):
    ids = [list(model.prompt(p).ids) for p in PROMPTS[:3]]
    texts = [text_of(model, wanted[p]) for p in PROMPTS[:3]]
    for prompt, right in (
        (PROMPTS[0], texts[:1]),
        (PROMPTS[:3], texts),
        (ids[1], texts[1:2]),
        (ids, texts),
    ):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8)
        assert [choice.text for choice in answer.choices] == right


def test_a_document_starts_alike_for_text_and_ids(server, model):
    for add, start_ in ((True, True), (None, True), (False, False)):
        told = []
        for prompt in ("def f", list(model.prompt("def f", start=False).ids)):
            tree = ask(server, prompt=prompt, add_bos=add, max_tokens=4).json()
            told.append(proofs_of(tree)[0].head["prompt"])
        assert told == [{"text": b"def f", "start": start_}] * 2


def exact_logprobs(seal, ids):
    """In float64 from the specification's logits: [N, V], of what follows each id."""
    _, _, logits = by_specification(seal)(np.array(ids, np.int32), 0)
    x = logits / 2.0**16
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("most", [0, 5])
@pytest.mark.parametrize("add_bos", [True, False])
def test_log_probabilities_of_prompt_and_answer(server, model, seal, most, add_bos):
    """Of the tokens that were sent, then of those that came, within 1e-4 of float64."""
    text = "def f(x): return 12"
    asked = {"prompt": text, "max_tokens": most, "logprobs": 3, "echo": True, "add_bos": add_bos}
    tree = ask(server, **asked).json()
    (choice,), (proof,) = tree["choices"], proofs_of(tree)
    found = choice["logprobs"]
    ids = [*model.prompt(text, add_bos).ids, *proof.output]
    exact = exact_logprobs(seal, ids)
    assert choice["text"] == text + proof.answer.decode(errors="replace")
    assert len(proof.output) == most
    assert choice["finish_reason"] == "length"
    logprobs, tops = found["token_logprobs"], found["top_logprobs"]
    if not add_bos:
        assert (logprobs[0], tops[0], found["text_offset"][0]) == (None, None, 0)
        logprobs, tops = logprobs[1:], tops[1:]
    assert len(logprobs) == len(ids) - 1
    for i, (told, top) in enumerate(zip(logprobs, tops, strict=True)):
        assert abs(told - exact[i, ids[i + 1]]) < 1e-4
        best = np.sort(exact[i])[::-1][:3]
        assert np.abs(np.sort(list(top.values()))[::-1][:3] - best).max() < 1e-4
        assert told in top.values()


def test_choices_draw_from_seeds_in_order(client, seal):
    def draw(**asked):
        answer = client.completions.create(
            model="tiny", prompt="a", max_tokens=8, temperature=1.0, top_p=0.95, **asked
        )
        return [choice.text for choice in answer.choices], answer.s7["seeds"], answer

    texts, seeds, answer = draw(seed=7, n=3)
    assert seeds == [7, 8, 9]
    assert len(set(texts)) == 3
    assert draw(seed=8)[0] == texts[1:2]
    assert [p.policy.sampling.seed for p in proofs_of(answer.model_dump())] == seeds
    replay(proofs_of(answer.model_dump())[2], seal, by_specification(seal))
    # Without a seed one is drawn; told and given again it gives the same answer.
    some = [draw() for _ in range(3)]
    assert len({tuple(seeds) for _, seeds, _ in some}) == 3
    assert draw(seed=some[0][1][0])[0] == some[0][0]


def test_the_best_of_several_is_the_most_likely_by_token(server):
    asked = {"prompt": "a", "max_tokens": 6, "temperature": 2, "seed": 3, "logprobs": 0}
    every = ask(server, **asked, n=4).json()
    best = ask(server, **asked, n=2, best_of=4).json()
    means = {c["text"]: np.mean(c["logprobs"]["token_logprobs"]) for c in every["choices"]}
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    assert [c["text"] for c in best["choices"]] == ranked[:2]
    assert best["usage"] == every["usage"]
    assert len(best["s7"]["proofs"]) == 2


def test_a_bias_bans_and_is_in_the_proof(server, wanted, seal):
    first = wanted["a"][0]
    tree = ask(server, prompt="a", max_tokens=4, logit_bias={str(first): -100, "9": 0.5}).json()
    (proof,) = proofs_of(tree)
    assert first not in proof.output
    assert dict(proof.policy.sampling.logit_bias) == {first: -100 << 16, 9: 1 << 15}
    replay(proof, seal, by_specification(seal))


def test_a_stop_string_ends_the_text_before_it(client, model, wanted):
    text = text_of(model, wanted["2 + 2 ="])
    stop_ = next(c for c in text[1:] if c.isascii())  # a replaced byte is no text to stop at
    for stream in (False, True):
        answer = client.completions.create(
            model="tiny", prompt="2 + 2 =", max_tokens=8, stop=stop_, stream=stream
        )
        chunks = list(answer) if stream else [answer]
        assert "".join(c.choices[0].text for c in chunks) == text[: text.index(stop_)]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_base_model_has_no_chat(client):
    with pytest.raises(openai.BadRequestError, match="base model: it continues text"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])


ODD = [
    ({}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": "a" * 500}, "prompt"),
    ({"prompt": "zq" * 32}, "prompt"),
    ({"prompt": [300]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": "", "add_bos": False}, "prompt"),
    ({"prompt": ["a"] * 60}, "prompt"),
    ({"prompt": ["a"] * 200_000}, "prompt"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 0.001}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**64}, "max_tokens"),
    ({"max_tokens": 16_777_217}, "max_tokens"),
    ({"max_tokens": 3.0}, "max_tokens"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"n": 0}, "n"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"n": 50}, "n"),
    ({"n": 1, "best_of": 50}, "best_of"),
    ({"prompt": ["x"] * 50}, "prompt"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"colour": 1}, "colour"),
    ({"stop": 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop": list("abcde")}, "stop"),
    ({"stop": "é" * 200}, "stop"),
    ({"stop": "\udcff"}, "stop"),
    ({"stream": "no"}, "stream"),
    ({"stream_options": {"include": 1}}, "stream_options"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"300": 1}}, "logit_bias"),
    ({"logit_bias": {"3": 101}}, "logit_bias"),
    ({"suffix": "x"}, "suffix"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"frequency_penalty": 0.1}, "frequency_penalty"),
    ({"model": "gpt"}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), ODD, ids=lambda value: str(value)[:40])
def test_bad_requests_are_told_which_field_is_wrong(server, fields, param):
    body = json.dumps({"prompt": "a", **fields} if fields else {})
    answer = httpx.post(
        f"{server}/v1/completions",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=HANGS,
    )
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param in (error["param"], error["message"].split(":")[0])
    assert error["message"].startswith(param)


def post(url, content, **headers):
    found = {"Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    return httpx.post(f"{url}/v1/completions", content=content, headers=found, timeout=HANGS)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"prompt": "a", "\\ud800": 1}', {}, 400),
        (b"", {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}", {}, 400),
        (b" " * (2 << 20), {}, 413),
        (b'{"prompt": "a"}', {"Content_Type": "text/plain"}, 415),
        (b'{"prompt": "a"}', {"Content_Type": ""}, 415),
        (b'{"prompt": "a"}', {"Host": "evil.example"}, 400),
        (b'{"prompt": "a"}', {"Host": "127.0.0.1.evil.example:80"}, 400),
        (b'{"prompt": "a"}', {"Host": "localhost:1"}, 200),
        (b'{"prompt": "a"}', {"Host": "LocalHost"}, 200),
        (b'{"prompt": "a"}', {"Host": "[::1]:8000"}, 200),
        (b'{"prompt": "a"}', {"Host": "[::1]"}, 200),
    ],
)
def test_what_is_no_request(server, content, headers, status):
    found = post(server, content, **headers)
    assert found.status_code == status
    if status != 200:
        assert found.json()["error"]["type"] == "invalid_request_error"


def test_models_health_and_metrics(server, client, seal):
    ask(server, prompt="the secret in a prompt", max_tokens=1)
    entry = client.models.list().data[0]
    assert (entry.id, entry.root, entry.context) == ("tiny", seal.root.hex(), 64)
    assert client.models.retrieve("tiny") == entry
    with pytest.raises(openai.NotFoundError, match="there is only 'tiny'"):
        client.models.retrieve("gpt")
    assert entry.provenance == dict(seal.manifest.provenance)
    assert httpx.get(f"{server}/healthz").json() == {"ok": True, "open": 0}
    assert httpx.get(f"{server}/readyz").json() == {"ready": True}
    for path in ("", "healthz", "readyz"):
        head = httpx.head(f"{server}/{path}")
        assert (head.status_code, head.content) == (200, b"")
    assert "/v1/completions" in httpx.get(f"{server}/openapi.json").json()["paths"]
    assert httpx.get(f"{server}/docs").status_code == 200
    text = httpx.get(f"{server}/metrics").text
    assert 's7_answers_total{end="length"}' in text
    assert "s7_open_answers 0.0" in text
    assert "secret" not in text


def test_the_tokenizer_is_the_models(server, model):
    def post_to(path, **body):
        return httpx.post(f"{server}/{path}", json=body).json()

    ids = list(model.prompt("def f", start=False).ids)
    plain = post_to("tokenize", prompt="def f", add_special_tokens=False)
    assert plain == {"tokens": ids, "count": len(ids), "max_model_len": 64}
    assert post_to("tokenize", prompt="def f")["tokens"] == [0, *ids]
    assert post_to("detokenize", tokens=[0, *ids]) == {"prompt": "def f"}
    assert post_to("detokenize", tokens=[300])["error"]["param"] == "tokens"
    end = httpx.get(f"{server}/tokenizer_info").json()["eos_token"]
    assert post_to("tokenize", prompt=end, add_special_tokens=False)["tokens"] == [0]


def test_no_page_of_others_may_ask_unless_it_is_named(sealed, server):
    def allowed(url, origin):
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        asks["Access-Control-Request-Headers"] = "content-type"
        found = httpx.options(f"{url}/v1/completions", headers=asks)
        return found.headers.get("access-control-allow-origin")

    assert allowed(server, "https://a.example") is None
    with Server(sealed, "--allow-origin", "https://a.example") as named:
        assert allowed(named.url, "https://a.example") == "https://a.example"
        assert allowed(named.url, "https://b.example") is None


def refused(sealed, *flags):
    """Exit code and message of a server that does not start."""
    command = [sys.executable, str(ROOT / "tools/serve.py"), str(sealed), *flags]
    done = subprocess.run(
        command, env=os.environ, capture_output=True, text=True, check=False, timeout=HANGS
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_what_it_cannot_start_with_is_said(sealed, server, tmp_path):
    taken = server.rpartition(":")[2]
    code, said = refused(sealed, "--port", taken)
    assert (code, f"port {taken}: Address already in use" in said) == (1, True)
    for content in (b"", b"\xff", None):
        path = tmp_path / "tokens"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        code, said = refused(sealed, "--token-file", str(path))
        assert (code, f"--token-file {path}" in said) == (2, True)


def test_open_to_others_a_token_is_needed(sealed, tmp_path):
    code, said = refused(sealed, "--host", "0.0.0.0")
    assert (code, "--token-file" in said) == (2, True)
    secrets = tmp_path / "tokens"
    secrets.write_text("first\nsecond\n")
    with Server(sealed, "--token-file", str(secrets)) as guarded:
        url = guarded.url
        for given, status in ((None, 401), ("other", 401), ("first", 200), ("second", 200)):
            headers = {} if given is None else {"Authorization": f"Bearer {given}"}
            for path in ("/v1/models", "/metrics"):
                assert httpx.get(f"{url}{path}", headers=headers).status_code == status
        assert ask(url, prompt="a").status_code == 401
        assert httpx.get(f"{url}/").status_code == 200
