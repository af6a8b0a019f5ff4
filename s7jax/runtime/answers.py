"""The known-answer transcript: short answers sealed with the model, to be given again anywhere.

One prompt per domain, continued greedily by the NumPy specification; sealed are the ids and a hash
of the logits of every step. A machine that reproduces them computes as the sealing one did.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError
from s7jax.integer.sampling import Sampling, choose
from s7jax.runtime.compute import Forward
from s7jax.runtime.prompt import of_text
from s7jax.runtime.proof import hashed
from s7jax.s7l import Seal

PROMPTS = {
    "code": "def main():\n    ",
    "math": "2 + 3 = ",
    "reason": "All men are mortal.",
    "general": "It was a dark and",
}
OTHER = "The"  # prompt of any other domain
TOKENS = 4  # of every answer, or fewer where the context ends


def answer(seal: Seal, forward: Forward) -> list[dict[str, Any]]:
    """The transcript of an open seal, in order of domains."""
    tokenizer = Tokenizer.from_vocabulary(seal.vocabulary.file_tree())
    context = seal.manifest.dimensions.context
    answers = []
    for domain in seal.manifest.dimensions.domains:
        ids = of_text(tokenizer, PROMPTS.get(domain, OTHER)).ids
        prompt = list(ids[: max(1, context - TOKENS)])
        answers.append({"domain": domain, "prompt": prompt, **_continue(prompt, context, forward)})
    return answers


def check(answers: Sequence[Mapping[str, Any]], forward: Forward) -> None:
    """Compute a sealed transcript again.

    Raises:
        InputError: naming the first domain and step that differ.
    """
    for known in answers:
        prompt, output = list(known["prompt"]), list(known["output"])
        tokens = np.array([*prompt, *output[:-1]], np.int32)
        _, _, logits = forward(tokens, len(prompt) - 1)
        for i, row in enumerate(logits):
            where = f"{known['domain']}, step {i}"
            if hashed(row) != known["logits"][i]:
                raise InputError(f"known answer {where}: other logits than sealed")
            if (token := choose(row, len(prompt) - 1 + i, Sampling())) != output[i]:
                raise InputError(f"known answer {where}: token {token}; sealed is {output[i]}")


def _continue(prompt: list[int], context: int, forward: Forward) -> dict[str, Any]:
    tokens, logits = list(prompt), []
    for _ in range(min(TOKENS, context - len(prompt))):
        at = len(tokens) - 1
        _, _, rows = forward(np.array(tokens, np.int32), at)
        logits.append(hashed(rows[0]))
        tokens.append(choose(rows[0], at, Sampling()))
    return {"output": tokens[len(prompt) :], "logits": logits}
