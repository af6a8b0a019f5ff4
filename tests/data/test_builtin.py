import ast
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from s7jax.config import PRESETS
from s7jax.data import builtin
from s7jax.data.builtin import math, reason, stdlib

DOMAINS = PRESETS["s7-nano"].model.domains


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_domain_is_large_enough_and_distinct(domain):
    documents = builtin.documents(domain)
    size = sum(len(d.text.encode()) for d in documents)
    assert 1_500_000 <= size <= 4_000_000
    assert len({d.text for d in documents}) == len(documents) == len({d.origin for d in documents})


@pytest.mark.parametrize("generator", [math, reason])
def test_a_generator_is_a_pure_function_of_seed_and_index(generator):
    order = list(range(300))
    texts = [generator.document(0, i) for i in order]
    assert [generator.document(0, i) for i in reversed(order)][::-1] == texts
    assert len(set(texts)) > 290
    assert not set(texts) & {generator.document(1, i) for i in order if len(texts[i]) > 150}


def test_generators_do_not_depend_on_the_process():
    code = (
        "from s7jax.data.builtin import math, reason\n"
        "print([m.document(3, i) for m in (math, reason) for i in range(60)])"
    )
    expected = [m.document(3, i) for m in (math, reason) for i in range(60)]
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        assert ast.literal_eval(run.stdout.decode()) == expected


EQUATION = re.compile(
    r"(?<![-+×^/=(,] )(?<![-+×^/\w.(])[\d(][\d ()+×/^-]*(?:= [\d ()+×/^-]*[\d)])+(?![\w^])"
)


@pytest.mark.parametrize("family", range(len(math.FAMILIES)))
def test_printed_equations_hold(family):
    """Both sides of whatever is printed as an equation of plain numbers are equal."""
    held = 0
    for index in range(family, 20 * len(math.FAMILIES), len(math.FAMILIES)):
        for equation in EQUATION.findall(math.document(5, index)):
            sides = equation.replace("×", "*").replace("^", "**").split("=")
            values = {
                eval(re.sub(r"(\d+)", r"Fraction(\1)", side).strip(), {"Fraction": Fraction})
                for side in sides
            }
            assert len(values) == 1, equation
            held += 1
    assert held >= 20 or math.FAMILIES[family] in (math._derivative, math._linear_equation)


def test_docstrings_are_in_general_and_not_in_code():
    code = {d.origin.split(", ")[1]: d.text for d in builtin.documents("code")}
    name, module = next((n, m) for n, m in sorted(code.items()) if len(m) > 20_000)
    for node in ast.walk(ast.parse(module)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            assert ast.get_docstring(node) is None, name
    prose = "".join(d.text for d in builtin.documents("general"))
    assert "The module json\n\nJSON (JavaScript Object Notation)" in prose
    assert "JSON (JavaScript Object Notation) <" not in "".join(code.values())


def test_removing_docstrings_keeps_the_program():
    source = (
        '"""Module."""\nimport os\n\n'
        'def f():\n    """Only."""\n\ndef g(x):\n    """Two\n    lines."""\n'
        '    return """kept"""\n\ndef h(): "one line"\n\nclass C:\n    "doc"\n    x = 1\n'
    )
    stripped = stdlib._without_docstrings(source, ast.parse(source))
    assert stripped == (
        'import os\n\ndef f():\n    pass\n\ndef g(x):\n    return """kept"""\n\n'
        'def h(): "one line"\n\nclass C:\n    x = 1\n'
    )
