"""What the library's machine code computes with: no floating-point arithmetic or conversion."""

import re
import shutil
import subprocess
from pathlib import Path

# Moves and bit operations of vector registers are named as if for floats (movaps, xorps) and are
# none; x87 is all floats. AArch64's fmov moves bits.
_X86 = re.compile(
    r"v?(add|sub|addsub|hadd|hsub|mul|div|sqrt|max|min|rcp|rsqrt|rcp14|rsqrt14|round|rndscale|dp|"
    r"cmp|cmp\w+|ucomi|comi|scalef|getexp|getmant|reduce|range|fixupimm|"
    r"fn?m(add|sub|addsub|subadd)(132|213|231)?)(ss|sd|ps|pd|sh|ph)|v?cvt\w+|f(?!s$)[a-z]\w*"
)
_ARM = re.compile(r"f(?!mov)\w+|[su]cvtf\w*|bf\w*dot\w*|bfmmla")
_LINE = re.compile(r"^\s*[0-9a-f]+:\t(?:[0-9a-f]{2,8} )+\s*\t(?:lock |rep\w* |notrack )*(\S+)")


def possible() -> bool:
    """Whether machine code can be taken apart here."""
    return shutil.which("objdump") is not None


def instructions(binary: Path, objdump: str = "objdump") -> list[str]:
    """Mnemonics of a binary's code, in order."""
    text = subprocess.run(
        [objdump, "-d", "-w", str(binary)], check=True, capture_output=True, text=True
    ).stdout
    return [found[1] for line in text.splitlines() if (found := _LINE.match(line))]


def floating(mnemonics: list[str], arm: bool = False) -> set[str]:
    """Those that add, multiply, compare or convert floating-point numbers."""
    pattern = _ARM if arm else _X86
    return {name for name in mnemonics if pattern.fullmatch(name)}
