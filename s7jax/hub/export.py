"""A finished run as a folder for transformers and the Hugging Face Hub, bit by bit."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s7jax import hub, s7l
from s7jax.architecture import Architecture
from s7jax.data.prepared import MANIFEST, TOKENIZER, read_manifest
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError
from s7jax.fields import plain
from s7jax.hub.card import Card
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.s7l.publish import new_folder
from s7jax.s7l.schema import read_json
from s7jax.storage import write_bytes, write_json
from s7jax.train.finished import Finished
from s7jax.train.folder import RunFolder

FORMAT, VERSION = "s7-hub", 1
WEIGHTS = "model.safetensors"
FACTS = "s7jax.json"  # what it takes to take the folder back: the records of the checkpoints
CODE = "modeling_s7.py"


def export(run: RunFolder, out: Path) -> int:
    """Write a run's float model, tokenizer, code and card to a new folder.

    Returns:
        The number of tensors written.

    Raises:
        InputError: the run is not finished or damaged, or ``out`` exists.
        OSError: the folder of ``out`` cannot be written.
    """
    refuse_existing(out)
    model = _finished(run)
    tokenizer = _tokenizer(run, model.tokenizer_sha256)
    tensors = dict(parameters.named_tensors(parameters.host(model.load(single()))))
    evaluation = read_json(run.evaluation) if run.evaluation.exists() else None
    if not isinstance(evaluation or {}, dict):
        raise InputError(f"{run.evaluation}: not what s7jax evaluate writes; remove it")
    quality = evaluation and evaluation.get("quality")
    card = Card(out.name, model.config, model.records, quality, *_data(run))
    with new_folder(out) as folder:
        write_weights(folder / WEIGHTS, tensors)
        write_json(folder / "config.json", model_config(model.config.model))
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eod)
        write_json(folder / "generation_config.json", ends)
        tokenizer.save(folder / TOKENIZER, context=model.config.model.context)
        write_bytes(folder / CODE, resources.files(hub).joinpath(CODE).read_bytes())
        facts = {"format": FORMAT, "version": VERSION, "evaluation": evaluation}
        write_json(folder / FACTS, {**facts, "records": dict(model.records)})
        write_bytes(folder / "README.md", card.text().encode())
    return len(tensors)


def write_weights(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """The float tensors as transformers wants them: its header says who may read them."""
    s7l.write_safetensors(path, tensors, {"format": "pt"})


def model_config(model: Architecture) -> dict[str, Any]:
    """``config.json`` of transformers: the dimensions, and where the code for them is."""
    tree = plain(model)
    code = CODE.removesuffix(".py")
    return {
        "model_type": "s7",
        "architectures": ["S7ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{code}.S7Config",
            "AutoModelForCausalLM": f"{code}.S7ForCausalLM",
        },
        "torch_dtype": "float32",
        "vocab_size": tree["vocab"],
        "max_position_embeddings": tree["context"],
        **{key: tree[key] for key in ("trunk", "expert", "domains", "routing_window")},
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), Tokenizer.eod),
    }


def refuse_existing(out: Path) -> None:
    """Before the work, what is refused after it too.

    Raises:
        InputError: ``out`` exists.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists; nothing is overwritten")


def _finished(run: RunFolder) -> Finished:
    """The run's final checkpoints, of every phase."""
    experts = [run.final(f"expert{e}") for e in range(len(run.config().domains))]
    trunk, router = run.final("trunk"), run.final("router")
    for folder in (trunk, *experts, router):
        if not folder.is_dir():
            raise InputError(
                f"{run.path} is not finished: {folder} is not there; "
                f"`s7jax pipeline --run {run.path}` goes on with it"
            )
    return Finished.open(trunk, experts, router)


def _tokenizer(run: RunFolder, sha256: str) -> Tokenizer:
    """The tokenizer the run was trained with, from its vocabulary or from its data."""
    if run.vocab.exists():
        where, found = run.vocab, Tokenizer.from_vocabulary(read_json(run.vocab))
    else:
        where = run.prepared / TOKENIZER
        found = Tokenizer.load(where)
    if found.digest != sha256:
        raise InputError(f"{where}: not the tokenizer that {run.path} was trained with ({sha256})")
    return found


def _data(run: RunFolder) -> tuple[list[dict[str, Any]], list[str]]:
    """What is known of the text: sources by domain, and data sets of the Hub among them."""
    manifest = read_manifest(run.prepared) if (run.prepared / MANIFEST).exists() else {}
    sources = [
        {"domain": domain["name"], **source}
        for domain in manifest.get("domains", [])
        for source in domain["sources"]
    ]
    given = str(run.read()["data"] or "")
    return sources, sorted(set(re.findall(r"hf://datasets/([\w.-]+/[\w.-]+)", given)))
