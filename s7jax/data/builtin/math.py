"""Worked mathematics: every document states a problem and works it out step by step.

``document(seed, index)`` is a pure function; nothing here keeps state.
"""

from collections.abc import Callable
from fractions import Fraction
from math import gcd, prod
from random import Random

from s7jax.data.builtin.words import NAMES, THINGS, joined


def document(seed: int, index: int) -> str:
    """The text of document ``index``: two to four worked problems of one kind."""
    rng = Random(f"{seed}:math:{index}")
    family = FAMILIES[index % len(FAMILIES)]
    return "\n\n".join(family(rng) for _ in range(rng.randint(2, 4))) + "\n"


def _addition(rng: Random) -> str:
    digits = rng.randint(2, 5)
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    ask = rng.choice(["Compute {} + {}.", "What is {} + {}?", "Add {} and {} column by column."])
    lines, carry = [ask.format(a, b)], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        with_carry = f" + {carry}" if carry else ""
        lines.append(
            f"{_PLACES[place]}: {x} + {y}{with_carry} = {total}, write {total % 10}"
            + (", carry 1" if total > 9 else "")
        )
        carry = total // 10
    if carry:
        lines.append("The last carry is 1 in front.")
    return "\n".join([*lines, f"So {a} + {b} = {a + b}."])


def _subtraction(rng: Random) -> str:
    b, difference = rng.randint(20, 9_000), rng.randint(20, 9_000)
    a = b + difference
    up = -(-b // 100) * 100
    ask = rng.choice(["Compute {} - {}.", "Subtract {1} from {0}.", "How much is {} less {}?"])
    if up > a or rng.random() < 0.4:
        tens = b // 10 * 10
        steps = [f"Take away {tens}: {a} - {tens} = {a - tens}."]
        steps += [f"Take away {b - tens}: {a - tens} - {b - tens} = {a - b}."]
    else:
        steps = [f"From {b} to {up} is {up - b}.", f"From {up} to {a} is {a - up}."]
        steps += [f"Together {up - b} + {a - up} = {a - b}."]
    return "\n".join([ask.format(a, b), *steps, f"{a} - {b} = {a - b}."])


def _multiplication(rng: Random) -> str:
    a, b = rng.randint(12, 999), rng.randint(3, 99)
    parts = [int(d) * 10**i for i, d in enumerate(reversed(str(b))) if d != "0"][::-1]
    ask = rng.choice(["Multiply {} by {}.", "What is {} × {}?", "Work out {} * {}."])
    lines = [ask.format(a, b)]
    if len(parts) > 1:
        lines.append(f"Split {b} into {' + '.join(map(str, parts))}.")
    lines += [f"{a} × {p} = {a * p}" for p in parts]
    if len(parts) > 1:
        lines.append(f"Sum: {' + '.join(str(a * p) for p in parts)} = {a * b}")
    return "\n".join([*lines, f"Answer: {a * b}"])


def _division(rng: Random) -> str:
    divisor, number = rng.randint(3, 25), rng.randint(100, 9_999)
    ask = rng.choice(["Divide {} by {}.", "Long division: {} ÷ {}.", "How often does {1} fit {0}?"])
    lines, rest = [ask.format(number, divisor)], 0
    for digit in str(number):
        value = rest * 10 + int(digit)
        lines.append(
            f"Bring down {digit}: {value}. {divisor} goes {value // divisor} times, "
            f"{value} - {value // divisor * divisor} = {value % divisor}."
        )
        rest = value % divisor
    end = f"Quotient {number // divisor}, remainder {rest}."
    check = f"Check: {divisor} × {number // divisor} + {rest} = {number}."
    return "\n".join([*lines, end, check])


def _linear_equation(rng: Random) -> str:
    letter = rng.choice("xyznt")
    a, c = rng.sample(range(2, 15), 2)
    value, b = rng.randint(-12, 20), rng.randint(-30, 30)
    d = (a - c) * value + b
    ask = rng.choice(["Solve {} = {}.", "Find the unknown in {} = {}.", "{} = {}. Solve it."])
    left, right = _poly([b, a], letter), _poly([d, c], letter)
    return "\n".join(
        [
            ask.format(left, right),
            f"Bring the terms in {letter} to the left: {_poly([b, a - c], letter)} = {d}.",
            f"Move {b} to the right: {_poly([0, a - c], letter)} = {d - b}.",
            f"Divide by {a - c}: {letter} = {value}.",
            f"Check: both sides are {a * value + b}.",
        ]
    )


def _fractions(rng: Random) -> str:
    a, b = (Fraction(rng.randint(1, 12), rng.randint(2, 15)) for _ in range(2))
    if rng.random() < 0.5:
        common = a.denominator * b.denominator // gcd(a.denominator, b.denominator)
        x, y = int(a * common), int(b * common)
        return "\n".join(
            [
                rng.choice(["Add the fractions {} and {}.", "What is {} + {}?"]).format(a, b),
                f"The common denominator of {a.denominator} and {b.denominator} is {common}.",
                f"{a} = {x}/{common} and {b} = {y}/{common}.",
                f"{x}/{common} + {y}/{common} = {x + y}/{common}.",
                f"Lowest terms: {a + b}.",
            ]
        )
    top, bottom = a.numerator * b.numerator, a.denominator * b.denominator
    return "\n".join(
        [
            rng.choice(["Multiply {} by {}.", "What is {} × {}?"]).format(a, b),
            f"Numerators: {a.numerator} × {b.numerator} = {top}.",
            f"Denominators: {a.denominator} × {b.denominator} = {bottom}.",
            f"{top}/{bottom}, both divisible by {gcd(top, bottom)}: {a * b}.",
        ]
    )


def _common_divisor(rng: Random) -> str:
    factor = rng.randint(1, 30)
    a, b = sorted((factor * rng.randint(4, 90), factor * rng.randint(4, 90)), reverse=True)
    ask = rng.choice(["Find gcd({}, {}).", "Greatest common divisor of {} and {}, by Euclid."])
    lines, x, y = [ask.format(a, b)], a, b
    while y:
        lines.append(f"{x} = {x // y} × {y} + {x % y}")
        x, y = y, x % y
    multiple = f"The least common multiple is {a} × {b} / {x} = {a * b // x}."
    return "\n".join([*lines, f"The last divisor is {x}, so gcd({a}, {b}) = {x}.", multiple])


def _factors(rng: Random) -> str:
    number = rng.randint(30, 4_000)
    ask = rng.choice(["Write {} as a product of primes.", "Factor {}.", "Is {} prime?"])
    lines, rest, found, p = [ask.format(number)], number, [], 2
    while p * p <= rest:
        while rest % p == 0:
            lines.append(f"{rest} / {p} = {rest // p}")
            found.append(p)
            rest //= p
        p += 1
    if not found:
        lines.append(f"No prime up to {int(number**0.5)} divides {number}: it is prime.")
        return "\n".join(lines)
    found += [rest] * (rest > 1)
    lines.append(f"{number} = {' × '.join(map(str, found))}, so it is not prime.")
    lines.append(f"It has {prod(found.count(q) + 1 for q in set(found))} divisors.")
    return "\n".join(lines)


def _expansion(rng: Random) -> str:
    a, c = rng.randint(1, 6), rng.randint(1, 6)
    b, d = (rng.choice([-1, 1]) * rng.randint(1, 12) for _ in range(2))
    result = _poly([b * d, a * d + b * c, a * c])
    value = rng.randint(-3, 5)
    ask = rng.choice(["Expand ({})({}).", "Multiply out ({})({})."])
    return "\n".join(
        [
            ask.format(_poly([b, a]), _poly([d, c])),
            f"First terms: {a} × {c} = {a * c}, the coefficient of x^2.",
            f"Mixed terms: {a} × {_signed(d)} + {_signed(b)} × {c} = {a * d + b * c}.",
            f"Last terms: {_signed(b)} × {_signed(d)} = {b * d}.",
            f"Result: {result}.",
            f"At x = {value}: {_signed(a * value + b)} × {_signed(c * value + d)} = "
            f"{(a * value + b) * (c * value + d)}.",
        ]
    )


def _derivative(rng: Random) -> str:
    degree = rng.randint(2, 4)
    coefficients = [rng.randint(-9, 9) for _ in range(degree)] + [rng.randint(1, 9)]
    slope = [i * c for i, c in enumerate(coefficients)][1:]
    ask = rng.choice(["Differentiate f(x) = {}.", "Find the derivative of f(x) = {}."])
    lines = [ask.format(_poly(coefficients))]
    for power, c in reversed(list(enumerate(coefficients))):
        if c and power:
            term, result = _poly([0] * power + [c]), _poly([0] * (power - 1) + [power * c])
            lines.append(f"d/dx ({term}) = {result}")
    if coefficients[0]:
        lines.append(f"The constant {coefficients[0]} has derivative 0.")
    at = rng.randint(-2, 3)
    total = sum(c * at**i for i, c in enumerate(slope))
    return "\n".join([*lines, f"f'(x) = {_poly(slope)}", f"The slope at x = {at} is {total}."])


def _arithmetic_sequence(rng: Random) -> str:
    first, step, n = rng.randint(-20, 60), rng.choice([-7, -4, -3, 2, 3, 5, 6, 8, 11, 15]), 5
    terms, k = [first + step * i for i in range(n)], rng.randint(8, 40)
    value = first + (k - 1) * step
    return "\n".join(
        [
            f"Sequence: {', '.join(map(str, terms))}, ...",
            f"The difference is {terms[1]} - {_signed(terms[0])} = {step}.",
            f"Next terms: {terms[-1] + step}, {terms[-1] + 2 * step}.",
            f"Term {k}: {first} + {k - 1} × {_signed(step)} = {value}.",
            f"Sum of the first {k} terms: {k} × ({first} + {_signed(value)}) / 2 = "
            f"{k * (first + value) // 2}.",
        ]
    )


def _geometric_sequence(rng: Random) -> str:
    first, ratio, k = rng.randint(1, 40), rng.randint(2, 5), rng.randint(6, 9)
    terms = [first * ratio**i for i in range(4)]
    return "\n".join(
        [
            rng.choice(["Continue {}.", "What comes next: {}?"]).format(", ".join(map(str, terms))),
            f"Each term is the one before times {ratio}: {terms[1]} / {terms[0]} = {ratio}.",
            f"Next: {terms[-1]} × {ratio} = {terms[-1] * ratio}.",
            f"Term {k} is {first} × {ratio}^{k - 1} = {first * ratio ** (k - 1)}.",
        ]
    )


def _percent(rng: Random) -> str:
    price, rate = rng.randint(2, 90) * 20, rng.choice([5, 10, 15, 20, 25, 30, 40, 60])
    part, name, (thing, _) = price * rate // 100, rng.choice(NAMES), rng.choice(THINGS)
    up = rng.random() < 0.5
    end = price + part if up else price - part
    story = rng.choice(
        [
            f"A {thing} costs {price} cents. The price {'rises' if up else 'falls'} by {rate}%.",
            f"{name} sees a {thing} at {price} cents, {rate}% {'dearer' if up else 'off'} today.",
        ]
    )
    return "\n".join(
        [
            f"{story} What is the new price?",
            f"1% of {price} is {Fraction(price, 100)}, so {rate}% is {part}.",
            f"{price} {'+' if up else '-'} {part} = {end}.",
            f"The new price is {end} cents.",
        ]
    )


def _shopping(rng: Random) -> str:
    name, goods = rng.choice(NAMES), rng.sample(THINGS, rng.randint(2, 4))
    counts = [rng.randint(2, 12) for _ in goods]
    prices = [rng.randint(2, 25) for _ in goods]
    costs = [n * p for n, p in zip(counts, prices, strict=True)]
    total = sum(costs)
    money = -(-total // 50) * 50
    rows = list(zip(counts, goods, prices, costs, strict=True))
    basket = joined([f"{n} {many} at {p} coins each" for n, (_, many), p, _ in rows])
    end = rng.choice(["How many coins are left?", "What change is given?"])
    return "\n".join(
        [
            f"{name} has {money} coins and buys {basket}. {end}",
            *(f"The {many} cost {n} × {p} = {cost}." for n, (_, many), p, cost in rows),
            f"Altogether {' + '.join(map(str, costs))} = {total}.",
            f"Left: {money} - {total} = {money - total} coins.",
        ]
    )


def _travel(rng: Random) -> str:
    name, speed, hours = rng.choice(NAMES), rng.randint(3, 30) * 4, rng.randint(2, 9)
    second, more = rng.randint(3, 30) * 4, rng.randint(2, 6)
    far, further = speed * hours, second * more
    how = rng.choice(["drives", "rides", "travels"])
    return "\n".join(
        [
            f"{name} {how} {hours} hours at {speed} km/h, then {more} hours at {second} km/h. "
            + rng.choice(["How far is that?", "What is the whole distance and the mean speed?"]),
            f"First part: {speed} × {hours} = {far} km.",
            f"Second part: {second} × {more} = {further} km.",
            f"Distance: {far} + {further} = {far + further} km in {hours + more} hours.",
            f"Mean speed: {far + further} / {hours + more} = "
            f"{Fraction(far + further, hours + more)} km/h.",
        ]
    )


def _remainders(rng: Random) -> str:
    base, power, modulus = rng.randint(2, 12), rng.randint(3, 7), rng.randint(5, 40)
    lines = [
        rng.choice(["Find {}^{} mod {}.", "What is the remainder of {}^{} divided by {}?"]).format(
            base, power, modulus
        )
    ]
    value = 1
    for i in range(1, power + 1):
        product, value = value * base, value * base % modulus
        lines.append(f"{base}^{i}: {product // base} × {base} = {product}, mod {modulus}: {value}")
    return "\n".join([*lines, f"So {base}^{power} ≡ {value} (mod {modulus})."])


def _bases(rng: Random) -> str:
    number, base = rng.randint(20, 3_000), rng.choice([2, 3, 5, 8])
    ask = rng.choice(["Write {} in base {}.", "Convert {} to base {}."])
    lines, rest, digits = [ask.format(number, base)], number, ""
    while rest:
        lines.append(f"{rest} = {base} × {rest // base} + {rest % base}")
        digits = str(rest % base) + digits
        rest //= base
    return "\n".join([*lines, f"Read the remainders upwards: {digits}."])


def _statistics(rng: Random) -> str:
    values = [rng.randint(1, 60) for _ in range(rng.choice([5, 7, 9]))]
    ordered, total = sorted(values), sum(values)
    return "\n".join(
        [
            f"Data: {', '.join(map(str, values))}.",
            f"Sorted: {', '.join(map(str, ordered))}.",
            f"The median is the middle value, {ordered[len(values) // 2]}.",
            f"The sum is {' + '.join(map(str, values))} = {total}.",
            f"The mean is {total} / {len(values)} = {Fraction(total, len(values))}.",
            f"The range is {ordered[-1]} - {ordered[0]} = {ordered[-1] - ordered[0]}.",
        ]
    )


def _rectangle(rng: Random) -> str:
    a, b = rng.randint(3, 60), rng.randint(3, 60)
    place = rng.choice(["garden", "field", "room", "hall", "yard", "pool"])
    if rng.random() < 0.5:
        return "\n".join(
            [
                f"A {place} is {a} m long and {b} m wide. Find its area and perimeter.",
                f"Area: {a} × {b} = {a * b} square metres.",
                f"Perimeter: 2 × ({a} + {b}) = 2 × {a + b} = {2 * (a + b)} m.",
            ]
        )
    return "\n".join(
        [
            f"The perimeter of a {place} is {2 * (a + b)} m and one side is {a} m. Find its area.",
            f"Half the perimeter is {a + b}, so the other side is {a + b} - {a} = {b} m.",
            f"Area: {a} × {b} = {a * b} square metres.",
        ]
    )


def _poly(coefficients: list[int], letter: str = "x") -> str:
    """A polynomial from its coefficients, lowest power first: ``3x^2 - x + 5``."""
    text = ""
    for power, c in reversed(list(enumerate(coefficients))):
        if c:
            size = "" if abs(c) == 1 and power else str(abs(c))
            tail = ["", letter][power] if power < 2 else f"{letter}^{power}"
            sign = (" - " if c < 0 else " + ") if text else ("-" if c < 0 else "")
            text += f"{sign}{size}{tail}"
    return text or "0"


def _signed(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


_PLACES = ["Ones", "Tens", "Hundreds", "Thousands", "Ten thousands"]

FAMILIES: tuple[Callable[[Random], str], ...] = (
    *(_addition, _subtraction, _multiplication, _division, _linear_equation, _fractions),
    *(_common_divisor, _factors, _expansion, _derivative, _arithmetic_sequence),
    *(_geometric_sequence, _percent, _shopping, _travel, _remainders, _bases),
    *(_statistics, _rectangle),
)
