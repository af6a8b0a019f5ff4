"""The built-in corpus: always there, no network, nobody else's text shipped.

``code`` is the running Python's own standard library without its docstrings, ``general`` is those
docstrings as prose and the language reference's help topics; ``math`` and ``reason`` are written
by our own generators. Docstrings are in one domain only, so that held-out text of one domain is
never training text of another.
"""

from collections.abc import Callable, Iterator
from functools import cache

from s7jax.data.builtin import math, reason, stdlib
from s7jax.data.documents import Document

GENERATED_BYTES = 2_500_000

LICENSES = {"code": "PSF-2.0", "math": "Apache-2.0", "reason": "Apache-2.0", "general": "PSF-2.0"}


@cache
def documents(domain: str) -> tuple[Document, ...]:
    """The whole built-in corpus of one domain, 2 to 4 MB; the same for the same Python."""
    if domain == "code":
        return stdlib.code()
    if domain == "general":
        return stdlib.prose()
    generator = {"math": math.document, "reason": reason.document}[domain]
    return tuple(_generate(domain, generator))


def _generate(domain: str, generator: Callable[[int, int], str]) -> Iterator[Document]:
    """Distinct documents in index order until there is enough text."""
    seen: set[str] = set()
    size = index = 0
    while size < GENERATED_BYTES:
        text = generator(0, index)
        if text not in seen:
            seen.add(text)
            size += len(text.encode())
            yield Document(text, f"built-in {domain} {index}")
        index += 1
