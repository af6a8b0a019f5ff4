"""What a client does to the server: leaves, dawdles, floods; and how the server ends."""

import asyncio
import contextlib
import json
import re
import select
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from served import HANGS, ROOT, Server, ask, proofs_of, wait_until
from starlette.testclient import TestClient

from s7jax.runtime import Engine
from s7jax.runtime.model import Model
from s7jax.runtime.replay import by_specification, replay
from s7jax.server.app import application
from s7jax.server.fair import Fair
from s7jax.server.limits import Limits
from s7jax.server.listen import bound
from s7jax.server.pace import Pace
from s7jax.server.shares import Shares

API = "/v1/completions"
LONG = {"prompt": "a", "max_tokens": 60}


@pytest.fixture(scope="module")
def model(seal):
    return Model(seal)


class Held:
    """An engine that makes a step whenever it is told to."""

    def __init__(self, monkeypatch):
        self.allowed, self.steps, plain = threading.Semaphore(0), 0, Engine.step

        def step(engine):
            assert self.allowed.acquire(timeout=HANGS)
            self.steps += 1
            plain(engine)

        monkeypatch.setattr(Engine, "step", step)

    def go(self, steps=10_000):
        self.allowed.release(steps)


@pytest.fixture
def held(monkeypatch):
    return Held(monkeypatch)


@contextlib.contextmanager
def served(model, **limits):
    """The application, warm."""
    with TestClient(application(model, "tiny", Limits(**limits), hosts=["*"])) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def opened(client):
    return client.get("/healthz").json()["open"]


def test_clients_take_turns():
    line = Fair()
    for i in range(3):
        line.put("a", f"a{i}")
    for who in "bc":
        line.put(who, who)
    assert line.remove("c", "c")
    assert not line.remove("c", "c")
    assert list(line) == ["a0", "a1", "a2", "b"]
    assert line.take(lambda client: client == "b") == "b"
    assert line.take(lambda client: client == "b") is None
    line.put("b", "b")
    assert [line.take() for _ in range(5)] == ["a0", "b", "a1", "a2", None]
    assert not line


def test_who_asks_for_nothing_waits_and_who_is_answered_does_not():
    now = 0.0
    pace = Pace(rate=10, burst=5, clock=lambda: now)
    for _ in range(100):
        assert pace.reserve("good", 1) == 0
        pace.settle("good", 1, answered=True)
        now += 1 / 50
    now = 1_000.0
    waits = []
    for _ in range(8):
        waits.append(pace.reserve("bad", 1))
        pace.settle("bad", 1, answered=False)
    assert waits == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2, 0.3])
    assert pace.reserve("good", 1) == 0
    assert pace.reserve("large", 15) == pytest.approx(1)
    now += 100
    assert pace.reserve("bad", 1) == 0


def test_many_addresses_that_ask_for_nothing_share_one_budget():
    pace = Pace(rate=10, burst=5, clock=lambda: 1_000.0)
    waits = []
    for i in range(40):
        pace.reserve(f"bad{i}", 1)
        pace.settle(f"bad{i}", 1, answered=False)
        waits.append(pace.reserve(f"bad{i}", 1))
    assert waits[5] == 0
    assert waits[-1] == pytest.approx(40 / 20 - 5 / 10)
    assert pace.reserve("good", 1) == 0


def test_what_is_remembered_of_clients_is_bounded():
    now = 0.0
    pace = Pace(rate=10, burst=5, clock=lambda: now)
    for i in range(20_000):
        now += 1
        pace.reserve(str(i), 1)
        pace.settle(str(i), 1, answered=False)
    assert len(pace._paid) + len(pace._wasted) < 5_000


def test_clients_have_equal_shares_of_a_step_where_rows_cost_time():
    shares = Shares()
    clients = [(f"a{i}", "a") for i in range(8)] + [("b", "b")]
    turns = []
    for _ in range(40):
        chosen = shares.choose(clients)
        shares.took(len(chosen), len(chosen) * 0.1)
        turns.append(chosen)
    assert all("b" in chosen for chosen in turns)
    assert {len(chosen) for chosen in turns[-16:]} == {2}
    assert set().union(*turns[-8:]) == {answer for answer, _ in clients}  # each has its turn
    assert shares.choose(clients[:8]) == {answer for answer, _ in clients[:8]}


def test_all_rows_are_in_a_step_where_they_cost_no_time():
    shares = Shares()
    clients = [(f"a{i}", "a") for i in range(8)] + [("b", "b")]
    sizes = []
    for _ in range(20):
        sizes.append(len(shares.choose(clients)))
        shares.took(sizes[-1], 0.1)
    assert sizes == [2] + [9] * 19  # what an equal share takes has to be known first


def test_one_slow_step_is_forgotten():
    shares = Shares()
    clients = [("a0", "a"), ("a1", "a"), ("b", "b")]
    sizes = []
    for _ in range(5_000):
        sizes.append(len(shares.choose(clients)))
        shares.took(sizes[-1], 10.0 if len(sizes) == 2 else 0.1)
    assert sizes[:4] == [2, 3, 2, 2]
    assert sizes[-100:].count(3) > 90


def test_a_full_queue_says_so(model, held):
    with served(model, rows=1, waiting=0) as client, ThreadPoolExecutor(1) as other:
        first = other.submit(client.post, API, json=LONG)
        wait_until(lambda: opened(client))
        refused = client.post(API, json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        held.go()
        assert first.result(HANGS).status_code == 200
        wait_until(lambda: not opened(client))


@pytest.mark.parametrize("waits", [False, True])
def test_a_time_limit_has_its_own_reason(model, seal, held, waits):
    """An answer that ran out of time, in the batch or before it came to it, is proven as that."""
    with served(model, rows=1, waiting=4, seconds=0.3) as client, ThreadPoolExecutor(2) as others:
        first = others.submit(client.post, API, json=LONG)
        wait_until(lambda: opened(client))
        second = others.submit(client.post, API, json=LONG)
        wait_until(lambda: opened(client) == 2)
        time.sleep(0.4)
        held.go()
        tree = (second if waits else first).result(HANGS).json()
        assert tree["choices"][0]["finish_reason"] == "time"
        assert tree["usage"]["completion_tokens"] == (0 if waits else 1)
        (proof,) = proofs_of(tree)
        assert proof.end == "time"
        replay(proof, seal, by_specification(seal))


def test_a_stream_that_is_cut_tells_what_a_stop_text_held_back(model, held):
    """As much text as the proof has, also if its end might have begun a stop text."""
    body = LONG | {"stop": ["zzzzzzzzzzzzzzzz"], "stream": True}
    with served(model, rows=1, seconds=0.3) as client, ThreadPoolExecutor(1) as other:
        answer = other.submit(client.post, API, json=body)
        wait_until(lambda: opened(client))
        held.go(3)
        time.sleep(0.4)
        held.go()
        lines = answer.result(HANGS).text.split("\n\n")[:-2]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
        (proof,) = proofs_of(chunks[-1])
        told = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert proof.end == "time"
        assert told == proof.answer.decode(errors="replace") != ""


def test_nothing_is_answered_before_the_engine_is_warm(model, monkeypatch):
    warm, goes_on = Engine.warm, threading.Event()
    monkeypatch.setattr(Engine, "warm", lambda engine: goes_on.wait(HANGS) and warm(engine))
    with TestClient(application(model, "tiny", hosts=["*"])) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.post(API, json=LONG).status_code == 503
        goes_on.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post(API, json=LONG).status_code == 200


def test_a_request_that_the_engine_cannot_take_is_its_own_fault(model, monkeypatch):
    submit = Engine.submit

    def broken(engine, request, watch):
        if request.policy.max_new_tokens == 13:
            raise RuntimeError("this one")
        return submit(engine, request, watch)

    with served(model) as client:
        monkeypatch.setattr(Engine, "submit", broken)
        assert client.post(API, json=LONG | {"max_tokens": 13}).status_code == 503
        assert client.post(API, json=LONG).status_code == 200
        assert opened(client) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_answers_503_at_once(model, held, monkeypatch):
    with served(model, rows=1) as client, ThreadPoolExecutor(3) as others:
        bodies = LONG, LONG, LONG | {"stream": True}
        waiting = [others.submit(client.post, API, json=body) for body in bodies]
        wait_until(lambda: opened(client) == 3)
        monkeypatch.setattr(model.compute, "trunk", lambda *_: 1 / 0)
        held.go()
        plain, second, stream = (answer.result(HANGS) for answer in waiting)
        assert (plain.status_code, second.status_code) == (503, 503)
        assert "the engine has failed" in stream.text
        assert client.post(API, json=LONG).status_code == 503
        assert client.get("/healthz").status_code == 503
        assert client.get("/readyz").status_code == 503
        assert opened(client) == 0


def test_the_process_of_a_dead_engine_ends(sealed, tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(
        "import runpy\nfrom s7jax.runtime import Engine\n"
        "Engine.step = lambda engine: 1 / 0\n"
        f"runpy.run_path({str(ROOT / 'tools/serve.py')!r}, run_name='__main__')\n"
    )
    with Server(sealed, script=script) as server:
        assert ask(server.url, **LONG).status_code == 503
        assert server.ended(number=None) == 1
        assert "the engine failed: ZeroDivisionError" in server.said()


# From here on a server as a process.


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A server whose steps take 0.05 s: an answer of 60 tokens takes three seconds."""
    script = tmp_path_factory.mktemp("slow") / "serve.py"
    script.write_text(
        "import runpy, time\nfrom s7jax.runtime import Engine\nstep = Engine.step\n"
        "Engine.step = lambda engine: (time.sleep(0.05), step(engine))\n"
        "from s7jax.server.limits import Limits\n"
        "short = dict.fromkeys(('body_seconds', 'header_seconds', 'read_seconds'), 1)\n"
        "Limits.__init__.__kwdefaults__.update(short, strangers=20)\n"
        f"runpy.run_path({str(ROOT / 'tools/serve.py')!r}, run_name='__main__')\n"
    )
    return script


@pytest.fixture(scope="module")
def server(sealed, slow):
    with Server(sealed, "--rows", "1", script=slow) as found:
        yield found.url


def connect(url, data=b""):
    host, port = url.removeprefix("http://").split(":")
    found = socket.create_connection((host, int(port)), timeout=HANGS)
    found.sendall(data)
    return found


def sent(body, length=None):
    data = json.dumps(body).encode()
    head = f"POST {API} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(data)}\r\n\r\n".encode() + data


def open_at(url):
    return httpx.get(f"{url}/healthz", timeout=HANGS).json()["open"]


def tokens_at(url):
    text = httpx.get(f"{url}/metrics", timeout=HANGS).text
    return float(re.search(r"^s7_tokens_total (.*)$", text, re.M)[1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place_at_once(server, stream):
    """In the batch and in the queue: nothing is computed to the end for nobody."""
    before = tokens_at(server)
    gone = [connect(server, sent(LONG | {"stream": stream})) for _ in range(6)]
    wait_until(lambda: open_at(server) == 6)
    for connection in gone:
        connection.close()
    wait_until(lambda: open_at(server) == 0)
    assert tokens_at(server) - before < 6 * LONG["max_tokens"]


def test_one_client_leaves_room_for_others(sealed, slow):
    """Half of the queue is the most that one address may hold; one row is for others."""
    other = httpx.HTTPTransport(local_address="127.0.0.2")
    with Server(sealed, "--rows", "1", "--waiting", "2", script=slow) as server:
        mine = [connect(server.url, sent(LONG)) for _ in range(2)]
        wait_until(lambda: open_at(server.url) == 2)
        assert ask(server.url, prompt="a").status_code == 429
        with httpx.Client(base_url=server.url, transport=other, timeout=HANGS) as client:
            assert client.post(API, json={"prompt": "a"}).status_code == 200
        assert open_at(server.url) == 2  # nobody was waited for
        for connection in mine:
            connection.close()


def last_words(connection):
    """What comes before the server closes the connection."""
    connection.settimeout(HANGS)
    with connection:
        return connection.recv(1 << 16)


def test_headers_and_bodies_have_to_arrive(server):
    half = connect(server, b"GET /healthz HTTP/1.1\r\nHost: local")
    silent = connect(server)
    body = connect(server, sent(LONG, length=1_000))
    assert last_words(half) == b""
    assert last_words(silent) == b""
    assert last_words(body).startswith(b"HTTP/1.1 408")
    drops = connect(server)

    def drip():
        for _ in range(40):
            try:
                drops.sendall(b"X")
            except OSError:
                return
            time.sleep(0.1)

    dripping = threading.Thread(target=drip)
    dripping.start()
    with contextlib.suppress(ConnectionResetError):
        assert last_words(drops) == b""
    dripping.join()


@pytest.fixture(scope="module")
def narrow(sealed, tmp_path_factory):
    """A server that may open few files."""
    script = tmp_path_factory.mktemp("narrow") / "serve.py"
    script.write_text(
        "import resource, runpy\nresource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        f"runpy.run_path({str(ROOT / 'tools/serve.py')!r}, run_name='__main__')\n"
    )
    with Server(sealed, script=script) as found:
        yield found


def test_no_piece_of_a_stream_waits_for_the_one_before_to_be_acknowledged():
    """Which takes clients 40 ms (Nagle's algorithm beside delayed acknowledgements)."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            own = writer.get_extra_info("socket")
            found.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        (own,) = bound("127.0.0.1", 0)
        async with await asyncio.start_server(take, sock=own):
            _, writer = await asyncio.open_connection(*own.getsockname())
            flag = await found
            writer.close()
            return flag

    assert asyncio.run(accepted())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST / HT",
        sent(LONG, length=1_000),
        sent({}),
        sent(LONG),
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["silent", "half headers", "half a body", "no request", "answers", "idle"],
)
def test_many_who_hold_connections_keep_nobody_out(narrow, data):
    """More than there may be files; those of whoever has the most go, and the oldest first."""
    other = httpx.HTTPTransport(local_address="127.0.0.2")
    held = []
    with contextlib.suppress(TimeoutError, ConnectionError):  # refused is fine
        for _ in range(200):
            held.append(connect(narrow.url, data))
    with httpx.Client(base_url=narrow.url, transport=other, timeout=HANGS) as client:
        assert client.post(API, json={"prompt": "a", "max_tokens": 1}).status_code == 200
    assert "accept" not in narrow.said()
    for connection in held:
        connection.close()


def test_who_does_not_read_loses_the_connection(server):
    """Within a while, and not only when all that was asked for is written."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    host, port = server.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000
    connection.settimeout(HANGS)
    with connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(asked)
        gone = select.poll()
        gone.register(connection, 0)  # an end is always told
        assert gone.poll(HANGS * 1_000)


def test_an_upgrade_is_a_request_like_any_other(server):
    asked = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    asked += b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    connection = connect(server, asked + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
    assert last_words(connection).startswith(b"HTTP/1.1 200")


def test_long_texts_leave_the_interpreter_to_others(seal):
    """While one is tokenised another thread runs on."""
    tokenizer, beats, done = Model(seal).tokenizer, [], threading.Event()

    def beat():
        while not done.wait(0.001):
            beats.append(time.monotonic())

    beating = threading.Thread(target=beat)
    beating.start()
    wait_until(lambda: beats)
    before = len(beats)
    tokenizer.encode("hello wor " * 50_000)
    during = len(beats) - before
    done.set()
    beating.join()
    assert during > 3


STATES = {
    "idle": lambda url: [],
    "silent": lambda url: [connect(url)],
    "half headers": lambda url: [connect(url, b"POST / HT")],
    "half a body": lambda url: [connect(url, sent(LONG, length=1_000))],
    "no requests": lambda url: [connect(url, sent({})) for _ in range(100)],
    "an answer": lambda url: [connect(url, sent(LONG | {"max_tokens": 5}))],
    # Fewer than may be connected without a whole request: all may be before the first is read.
    "answers for minutes": lambda url: [connect(url, sent(LONG)) for _ in range(15)],
    "streams that nobody reads": lambda url: [
        connect(url, sent(LONG | {"stream": True})) for _ in range(8)
    ],
}


def readable(connections):
    """Those that are answered already."""
    return select.select(connections, [], [], 0)[0]


@pytest.mark.parametrize("state", STATES)
def test_sigterm_ends_within_the_grace(sealed, slow, state):
    with Server(sealed, "--rows", "1", "--grace", "2", script=slow) as server:
        held_ = STATES[state](server.url)
        if "answer" in state:
            wait_until(lambda: open_at(server.url) + len(readable(held_)) >= len(held_))
        elif "streams" in state:
            wait_until(lambda: open_at(server.url) == len(held_))
        server.ended()
        if "answer" in state:  # whole, or cut off by time
            words = [last_words(connection) for connection in held_]
            assert all(word.startswith(b"HTTP/1.1 200") for word in words)
            cut = [word for word in words if b'"finish_reason":"time"' in word]
            assert bool(cut) == (state == "answers for minutes")
        for connection in held_:
            connection.close()


def test_sigint_ends_it_too(sealed):
    with Server(sealed) as server:
        assert server.ended(signal.SIGINT) in (0, 130)
