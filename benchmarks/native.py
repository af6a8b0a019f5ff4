"""Measure the native engine beside llama.cpp, float32 XLA and the memory's own speed, in turns.

The model has the preset's dimensions and initial weights; llama.cpp (extra ``bench``) gets a random
Q8_0 file of as many active parameters. Trunk, one expert and the head of the last token, with
caches; every figure is a median of one run, every ratio a median over its turns. First tokens are
of cold processes (tools/generate.py). Without llama.cpp its columns are left out.

Examples:
  python benchmarks/native.py
  python benchmarks/native.py --preset s7-nano --repeat 31 --json
"""

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from integer import active, float_step, make_seal

from s7jax import s7l
from s7jax.architecture import Architecture
from s7jax.config import PRESETS, preset
from s7jax.data.tokenizer import Tokenizer
from s7jax.mesh import single
from s7jax.model.parameters import host, initial
from s7jax.native.program import NativeProgram
from s7jax.terminal import cli

ROOT = Path(__file__).resolve().parents[1]
PROMPT, DEEP, BATCH = 512, 1_536, 8
STEPS, PAUSE = 8, 0.05  # tokens in a row; seconds
Step = Callable[[], object]


def main() -> None:
    """Make the models, measure, print."""
    parser = cli.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="s7-140m")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=15, help="turns of decoding; prefill a third")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    args = parser.parse_args()
    cfg = preset(args.preset).model
    with tempfile.TemporaryDirectory() as folder:
        params = initial(cfg, 0, single())
        sealed = make_seal(Path(folder), cfg, params)
        gguf = write_gguf(Path(folder), cfg)
        rows = dict(cold(sealed))
        for threads in args.threads:
            sides = dict(native_sides(sealed, cfg, threads))
            if gguf:
                sides |= dict(llama_sides(gguf, cfg, threads))
            sides["stream, read"] = partial(read, threads)
            if threads == args.threads[-1]:
                sides |= dict(xla_sides(cfg, params))
            rows |= compared(in_turns(sides, args.repeat), cfg, threads)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for name, value in rows.items():
            print(f"{name:<64}{value:>12.2f}")


def prompt_of(cfg: Architecture) -> int:
    """Tokens of a prefill, which leaves room for an answer."""
    return min(PROMPT, cfg.context // 2)


def in_turns(sides: dict[str, Step], repeat: int) -> dict[str, list[float]]:
    """Seconds of a step of every side in every turn; the first turn and step warm up.

    Between sides there is a pause: the other side's threads go on looking for work for a while.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeat + 1):
        for name, step in sides.items():
            if "prefill" in name and turn % 3:
                continue
            count = 1 if "prefill" in name or "read" in name else STEPS
            time.sleep(PAUSE)
            step()
            began = time.perf_counter()
            for _ in range(count):
                step()
            times[name].append((time.perf_counter() - began) / count)
    return {name: spent[1:] for name, spent in times.items()}


def compared(times: dict[str, list[float]], cfg: Architecture, threads: int) -> dict[str, float]:
    """Tokens per second of every side, and ratios to the others."""
    rows: dict[str, float] = {}
    deep = min(DEEP, cfg.context - 1)

    def ratio(a: str, b: str, scale: float = 1.0) -> float:
        pairs = zip(times[a], times[b], strict=True)
        return statistics.median(scale * y / x for x, y in pairs)

    for name, spent in times.items():
        middle = statistics.median(spent)
        if name == "stream, read":
            rows[f"{threads} threads: memory read, GB/s"] = STREAM.nbytes / middle / 1e9
            continue
        tokens = prompt_of(cfg) if "prefill" in name else BATCH if "rows" in name else 1
        rows[f"{threads} threads: {name}, tokens/s"] = tokens / middle
    limit = active(cfg) / STREAM.nbytes
    rows[f"{threads} threads: decode over the read limit"] = ratio(
        "native, decode", "stream, read", limit
    )
    rows[f"{threads} threads: decode at {deep} over decode"] = ratio(
        f"native, decode at {deep}", "native, decode"
    )
    rows[f"{threads} threads: {BATCH} rows over one row, tokens/s"] = ratio(
        f"native, {BATCH} rows", "native, decode", BATCH
    )
    for other in ("llama.cpp", "float32 XLA"):
        for what in ("decode", "prefill"):
            if f"{other}, {what}" in times:
                name = f"{threads} threads: {what}, native over {other}"
                rows[name] = ratio(f"native, {what}", f"{other}, {what}")
    return rows


def native_sides(sealed: Path, cfg: Architecture, threads: int) -> Iterator[tuple[str, Step]]:
    """Decoding early, deep and in a batch, and a prefill, on the native engine."""
    program = NativeProgram(s7l.open(sealed), threads)
    slots, deep = cfg.context, min(DEEP, cfg.context - 1)
    prompt = prompt_of(cfg)
    caches = {
        b: (program.trunk_cache(b, slots), program.expert_cache(0, b, slots)) for b in (1, BATCH)
    }

    def step(start: int, length: int, rows: int = 1) -> Any:
        at, tokens = np.full(rows, start, np.int32), np.ones((rows, length), np.int32)
        h, _, _ = program.trunk(tokens, at, caches[rows][0])
        y, _ = program.expert(0, h, at, caches[rows][1])
        return program.head(y[:, -1:])

    yield "native, decode", lambda: step(16, 1)
    yield f"native, decode at {deep}", lambda: step(deep, 1)
    yield f"native, {BATCH} rows", lambda: step(16, 1, BATCH)
    yield "native, prefill", lambda: step(0, prompt)


def xla_sides(cfg: Architecture, params: Any) -> Iterator[tuple[str, Step]]:
    """The float32 model in XLA."""
    prompt = prompt_of(cfg)
    run = float_step(cfg, host(params), prompt)
    yield "float32 XLA, decode", lambda: run(16, 1)
    yield "float32 XLA, prefill", lambda: run(0, prompt)


STREAM = np.ones(1 << 28, np.int8)  # far beyond any cache


def read(threads: int) -> None:
    """Read that memory once, each thread its share."""
    parts = np.array_split(STREAM.view(np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, parts))


def cold(sealed: Path) -> Iterator[tuple[str, float]]:
    """Seconds and memory of a process that gives one token of a prompt of 16."""
    command = [sys.executable, str(ROOT / "tools/generate.py"), str(sealed), "--engine", "native"]
    command += ["--prompt", "x" * 15, "--max-tokens", "1"]
    code = (
        f"import resource, subprocess; subprocess.run({command!r}, check=True, capture_output=True)"
    )
    code += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    spent, peak = [], 0
    for _ in range(7):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        spent.append(time.perf_counter() - began)
        peak = int(done.stdout)
    yield "first token from a cold process, s", statistics.median(spent[1:])
    yield "its peak memory, MiB", peak / 1024
    yield "the sealed file, MiB", sealed.stat().st_size / 2**20


# --- llama.cpp ------------------------------------------------------------------------------


def write_gguf(folder: Path, cfg: Architecture, words: Tokenizer | None = None) -> Path | None:
    """A random Q8_0 file with about as many active parameters: None without the extra.

    With ``words`` it has that vocabulary, else none.
    """
    try:
        import gguf  # noqa: PLC0415 an extra
        import llama_cpp  # noqa: F401, PLC0415
    except ImportError:
        print("llama.cpp is left out: pip install 's7jax[bench]'", file=sys.stderr)
        return None
    D, V, heads = cfg.trunk.hidden, cfg.vocab, cfg.trunk.heads
    layers = cfg.trunk.layers + cfg.expert.layers
    rest = (active(cfg) - V * D) / layers - 4 * D * D
    ffn = max(32, round(rest / (3 * D) / 32) * 32)  # its layers have three matrices there
    path, rng = folder / "model.gguf", np.random.default_rng(0)
    out = gguf.GGUFWriter(path, "llama")
    out.add_vocab_size(V)
    out.add_context_length(cfg.context)
    out.add_embedding_length(D)
    out.add_block_count(layers)
    out.add_feed_forward_length(ffn)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(D // heads)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_tokenizer_model("gpt2" if words else "none")
    if words:
        words.save(folder / "tokenizer.json")
        tree = json.loads((folder / "tokenizer.json").read_text())["model"]
        out.add_tokenizer_pre("gpt-2")
        out.add_token_list(sorted(tree["vocab"], key=tree["vocab"].__getitem__))
        out.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (V - 1))
        out.add_token_merges([" ".join(pair) for pair in tree["merges"]])
        out.add_bos_token_id(words.eod)
        out.add_eos_token_id(words.eod)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = np.empty((rows, columns // 32, 34), np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
        blocks[..., 2:] = rng.integers(0, 256, (rows, columns // 32, 32), np.uint8)
        data = blocks.reshape(rows, -1)
        out.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    matrix("token_embd.weight", V, D)
    out.add_tensor("output_norm.weight", np.ones(D, np.float32))
    for i in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{i}.{name}.weight", np.ones(D, np.float32))
        for name in "qkv":
            matrix(f"blk.{i}.attn_{name}.weight", D, D)
        matrix(f"blk.{i}.attn_output.weight", D, D)
        matrix(f"blk.{i}.ffn_gate.weight", ffn, D)
        matrix(f"blk.{i}.ffn_up.weight", ffn, D)
        matrix(f"blk.{i}.ffn_down.weight", D, ffn)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def llama_sides(path: Path, cfg: Architecture, threads: int) -> Iterator[tuple[str, Step]]:
    """Decoding and prefill by llama.cpp, logits of the last token."""
    import llama_cpp as ll  # noqa: PLC0415 an extra

    ll.llama_log_set(_silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
    options = ll.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = min(cfg.context, 2 * PROMPT)
    options.n_threads = options.n_threads_batch = threads
    context = ll.llama_init_from_model(model, options)

    def step(start: int, length: int) -> None:
        memory = ll.llama_get_memory(context)
        ll.llama_memory_seq_rm(memory, 0, start, -1)
        tokens = (ll.llama_token * length)(*[1] * length)
        if ll.llama_decode(context, ll.llama_batch_get_one(tokens, length)):
            raise RuntimeError("llama.cpp failed to decode")
        ll.llama_get_logits_ith(context, -1)

    step(0, 16)
    prompt = prompt_of(cfg)
    yield "llama.cpp, decode", lambda: step(16, 1)
    yield "llama.cpp, prefill", lambda: step(0, prompt)


def _log(_level: int, _text: bytes, _data: int) -> None:
    """llama.cpp's own remarks are no measurements."""


try:
    from llama_cpp import llama_log_callback as _callback

    _silent = _callback(_log)
except ImportError:
    _silent = None


if __name__ == "__main__":
    cli.main(main)
