"""The sealed model that comes with the package: something to run right after installation.

It is what `make demo` makes, `s7-nano` on the built-in corpus: the sources and documentation of
Python's library (PSF-2.0) and generated problems. The key that signed it was thrown away.
"""

from pathlib import Path

SEALED = Path(__file__).parent / "nano.s7l"  # and its signature, nano.s7l.sig
KEY = Path(__file__).parent / "nano.pub.pem"
MADE_WITH = {  # those to whom the same command gives the same root, on processors of this kind
    "python": "3.11.7",
    "jaxlib": "0.10.2",
    "machine": "x86_64",
}
