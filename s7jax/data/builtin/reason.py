"""Reasoning with its steps: every document states a puzzle and deduces the answer.

``document(seed, index)`` is a pure function; nothing here keeps state.
"""

import datetime
from collections.abc import Callable
from itertools import pairwise, permutations, product
from random import Random

from s7jax.data.builtin.words import NAMES, THINGS, joined


def document(seed: int, index: int) -> str:
    """The text of document ``index``: one or two puzzles of one kind, solved."""
    rng = Random(f"{seed}:reason:{index}")
    family = FAMILIES[index % len(FAMILIES)]
    return "\n\n".join(family(rng) for _ in range(rng.randint(1, 2))) + "\n"


def _text(*lines: str) -> str:
    return "\n".join(lines)


def _syllogism(rng: Random) -> str:
    a, b, c = rng.sample(_KINDS, 3)
    form = rng.randrange(4)
    if form == 0:
        premises, claim, valid = (f"All {a} are {b}.", f"All {b} are {c}."), f"All {a} are {c}.", 1
        why = f"Take any of the {a}. It is among the {b}, and those are among the {c}."
    elif form == 1:
        premises, claim, valid = (f"All {a} are {b}.", f"No {b} are {c}."), f"No {a} are {c}.", 1
        why = f"Whatever is among the {a} is among the {b}, and none of those is among the {c}."
    elif form == 2:
        premises = (f"Some {a} are {b}.", f"All {b} are {c}.")
        claim, valid = f"Some {a} are {c}.", 1
        why = f"Those {a} that are {b} are also {c}, and there is at least one."
    else:
        premises = (f"All {a} are {b}.", f"Some {b} are {c}.")
        claim, valid = f"Some {a} are {c}.", 0
        why = f"The {b} that are {c} may all be others than the {a}."
    ask = rng.choice(["Does it follow that", "Can we conclude that", "Is it certain that"])
    name, one = rng.choice(NAMES), rng.choice(NAMES)
    verdict = "Yes, it follows." if valid else "No, it does not follow."
    story = rng.choice([f"{name} says to {one}:", "Given:", f"{name} writes two statements down."])
    return _text(
        f"{story} {premises[0]} {premises[1]} {ask} {claim[0].lower()}{claim[1:-1]}?", why, verdict
    )


def _ordering(rng: Random) -> str:
    names = rng.sample(NAMES, rng.randint(4, 6))
    more, most, least = rng.choice(_COMPARISONS)
    clues = list(pairwise(names))
    shown = rng.sample(clues, len(clues))
    lines = [" ".join(f"{a} is {more} than {b}." for a, b in shown)]
    lines.append(f"Put the {len(names)} in order and say who is {most} and who is {least}.")
    losers = {b for _, b in clues}
    order = [a for a in names if a not in losers]
    lines.append(f"Nobody is said to be {more} than {order[0]}, so {order[0]} comes first.")
    for a, b in clues:
        order.append(b)
        lines.append(f"{a} is {more} than {b}: {', '.join(order)}.")
    return _text(*lines, f"So {order[0]} is {most} and {order[-1]} is {least}.")


def _truth_tellers(rng: Random) -> str:
    names = rng.sample(NAMES, 3)
    honest = [rng.random() < 0.5 for _ in names]
    claims = []  # (speaker, about, said to be honest)
    for speaker in range(3):
        about = rng.choice([i for i in range(3) if i != speaker])
        claims.append((speaker, about, honest[about] == honest[speaker]))
    said = [
        f'{names[s]} says: "{names[about]} is a {"knight" if truth else "knave"}."'
        for s, about, truth in claims
    ]
    lines = ["Knights always tell the truth, knaves always lie. " + " ".join(said)]
    lines.append("Which assignments are possible? Try all eight.")
    fits = []
    for guess in product([True, False], repeat=3):
        wrong = [names[s] for s, about, truth in claims if guess[s] != (guess[about] == truth)]
        shown = ", ".join(
            f"{n} {'knight' if g else 'knave'}" for n, g in zip(names, guess, strict=True)
        )
        lines.append(f"{shown}: " + (f"{wrong[0]}'s words do not fit." if wrong else "possible."))
        if not wrong:
            fits.append(shown)
    return _text(*lines, f"Possible: {'; or '.join(fits)}.")


def _sets(rng: Random) -> str:
    both, only_a, only_b, none = (rng.randint(1, 30) for _ in range(4))
    a, b, total = only_a + both, only_b + both, only_a + only_b + both + none
    first, second = rng.sample(_HOBBIES, 2)
    group = rng.choice(["a class", "a club", "an office", "a village", "a choir"])
    return _text(
        f"Of {total} people in {group}, {a} like {first}, {b} like {second} and {both} like both. "
        + rng.choice(["How many like neither?", "How many like exactly one, and how many none?"]),
        f"Only {first}: {a} - {both} = {only_a}.",
        f"Only {second}: {b} - {both} = {only_b}.",
        f"At least one: {only_a} + {only_b} + {both} = {total - none}.",
        f"Exactly one: {only_a} + {only_b} = {only_a + only_b}.",
        f"Neither: {total} - {total - none} = {none}.",
    )


def _navigation(rng: Random) -> str:
    name, x, y, facing = rng.choice(NAMES), 0, 0, rng.randrange(4)
    start = rng.choice(["the well", "the gate", "the oak", "the bridge", "the tower", "the door"])
    lines, moves = [], []
    lines.append(f"Start at (0, 0), facing {_WINDS[facing]}.")
    for _ in range(rng.randint(3, 6)):
        turn, steps = rng.choice(["left", "right", "around", ""]), rng.randint(1, 9)
        facing = (facing + {"left": 3, "right": 1, "around": 2, "": 0}[turn]) % 4
        dx, dy = [(0, 1), (1, 0), (0, -1), (-1, 0)][facing]
        x, y = x + dx * steps, y + dy * steps
        moves.append(f"turns {turn} and walks {steps}" if turn else f"walks {steps}")
        lines.append(f"{moves[-1].capitalize()}: facing {_WINDS[facing]}, at ({x}, {y}).")
    ask = rng.choice(["How far is it back, along the grid?", "Is that the starting point again?"])
    walk = f"{name} stands at {start}, {lines[0].split(', ')[-1][:-1]}, then {', '.join(moves)}."
    end = f"From ({x}, {y}) back to (0, 0) it is {abs(x)} + {abs(y)} = {abs(x) + abs(y)} steps"
    return _text(f"{walk} {ask}", *lines, f"{end}, so {'no' if x or y else 'yes, the same point'}.")


def _calendar(rng: Random) -> str:
    start = datetime.date(rng.randint(1990, 2040), rng.randint(1, 12), rng.randint(1, 28))
    days = rng.randint(9, 120)
    end, weeks = start + datetime.timedelta(days), days // 7
    weekday, month = _day(start.weekday()), start
    rest = f"{days} = {weeks} × 7 + {days % 7}"
    lines = [
        f"{start.day} {_MONTHS[start.month - 1]} {start.year} is a {weekday}. "
        + rng.choice(
            ["What day is it {} days later?", "Which date and weekday come after {} days?"]
        ).format(days),
        f"{rest}, so the weekday moves on by {days % 7}: {weekday} becomes {_day(end.weekday())}.",
    ]
    left = days
    while left:
        following = (month.replace(day=1) + datetime.timedelta(32)).replace(day=1)
        step = min(left, (following - month).days)
        month, left = month + datetime.timedelta(step), left - step
        lines.append(
            f"{step} days bring us to {month.day} {_MONTHS[month.month - 1]}, {left} left."
        )
    return _text(
        *lines, f"Answer: {_day(end.weekday())}, {end.day} {_MONTHS[end.month - 1]} {end.year}."
    )


def _blocks(rng: Random) -> str:
    """Take every misplaced block down, then build the goal from below: always right."""
    colours = rng.sample(_COLOURS, rng.randint(3, 5))
    goal, tower = list(colours), list(colours)
    while tower == goal:
        rng.shuffle(tower)
    lines = [
        f"A tower has, from bottom to top: {joined(tower)}. "
        f"Goal, from bottom to top: {joined(goal)}. One block moves at a time, "
        + rng.choice(["from the top of a pile or the table.", "only if nothing lies on it."]),
    ]
    keep = 0
    while keep < len(tower) and tower[keep] == goal[keep]:
        keep += 1
    lines.append(f"The lowest {keep} already fit." if keep else "The lowest block is wrong.")
    while len(tower) > keep:
        block = tower.pop()
        lines.append(f"Put {block} on the table. Tower: {', '.join(tower) or 'empty'}.")
    for block in goal[keep:]:
        under = tower[-1] if tower else "the floor"
        tower.append(block)
        lines.append(f"Put {block} on {under}. Tower: {', '.join(tower)}.")
    return _text(*lines, f"Done in {2 * (len(goal) - keep)} moves.")


def _crossing(rng: Random) -> str:
    """Search the crossing puzzle's states breadth first; print the shortest plan."""
    hunter, prey, plant = rng.choice(_CHAINS)
    name, side = rng.choice(NAMES), rng.choice(["river", "lake", "canyon", "canal"])
    items = (hunter, prey, plant)
    here, there = rng.sample(["left", "right", "near", "far", "north", "south"], 2)
    start, end = frozenset(items), frozenset[str]()
    paths: dict[tuple[frozenset[str], bool], list[tuple[str, ...]]] = {(start, True): []}
    queue = [(start, True)]
    while (end, False) not in paths:
        left, at_left = state = queue.pop(0)
        bank = left if at_left else start - left
        options = [(), *((item,) for item in rng.sample(sorted(bank), len(bank)))]
        for load in options:
            after = (left - {*load} if at_left else left | {*load}, not at_left)
            alone = after[0] if at_left else start - after[0]
            if not ({hunter, prey} <= alone or {prey, plant} <= alone) and after not in paths:
                paths[after] = [*paths[state], load]
                queue.append(after)
    lines, left, at_left = [], start, True
    for load in paths[(end, False)]:
        left = left - {*load} if at_left else left | {*load}
        way = f"to the {there} side" if at_left else f"back to the {here} side"
        banks = [", ".join(sorted(b)) or "nothing" for b in (left, start - left)]
        lines.append(f"{name} goes {way} with {''.join(load) or 'nothing'}.")
        lines.append(f"Now on the {here} side: {banks[0]}; on the {there} side: {banks[1]}.")
        at_left = not at_left
    return _text(
        f"{name} must bring a {hunter}, a {prey} and a {plant} over a {side}, one at a time. "
        f"Left alone, the {hunter} eats the {prey} and the {prey} eats the {plant}.",
        *lines,
        f"All three are over, in {len(paths[(end, False)])} trips.",
    )


def _boolean(rng: Random) -> str:
    values = {v: rng.random() < 0.5 for v in rng.sample("ABCDPQRS", 3)}
    given = ", ".join(f"{v} = {_truth(x)}" for v, x in values.items())
    steps: list[str] = []

    def build(depth: int) -> tuple[str, bool]:
        if depth == 0:
            v = rng.choice(sorted(values))
            return v, values[v]
        op = rng.choice(["and", "or", "not", "implies"])
        left, x = build(depth - 1)
        if op == "not":
            text, value = f"not {left}" if depth == 1 else f"not ({left})", not x
        else:
            right, y = build(rng.randint(0, depth - 1))
            text = f"{_wrapped(left)} {op} {_wrapped(right)}"
            value = {"and": x and y, "or": x or y, "implies": not x or y}[op]
        steps.append(f"{text} is {_truth(value)}.")
        return text, value

    text, value = build(rng.randint(2, 3))
    ask = rng.choice(["Evaluate", "Find the value of", "Is this true or false:"])
    return _text(f"Given {given}. {ask} {text}", *steps, f"Answer: {_truth(value)}.")


def _boxes(rng: Random) -> str:
    names, things = rng.sample(NAMES, 4), [one for one, _ in rng.sample(THINGS, 4)]
    holds = dict(zip(names, things, strict=True))
    start = joined([f"{n} has the {t}" for n, t in holds.items()])
    swaps, lines = [], []
    for _ in range(rng.randint(3, 5)):
        a, b = rng.sample(names, 2)
        holds[a], holds[b] = holds[b], holds[a]
        swaps.append(f"{a} and {b} swap")
        lines.append(f"{a} and {b} swap: {a} has the {holds[a]}, {b} has the {holds[b]}.")
    who = rng.choice(names)
    question = f"{start}. Then {', then '.join(swaps)}. What does {who} hold in the end?"
    return _text(question, *lines, f"{who} holds the {holds[who]}.")


def _seating(rng: Random) -> str:
    """Eliminate the orders that break a clue until one is left."""
    names = rng.sample(NAMES, 4)
    seated = rng.sample(names, 4)
    rules: list[tuple[str, Callable[[tuple[str, ...]], bool]]] = []
    for name in names:
        i = seated.index(name)
        rules.append(
            (f"{name} does not sit in seat {(i + 1) % 4 + 1}.", _not_at(name, (i + 1) % 4))
        )
        if i:
            left = seated[i - 1]
            rules.append((f"{left} sits directly left of {name}.", _next_to(left, name)))
            rules.append((f"{seated[0]} sits left of {name}.", _before(seated[0], name)))
    left_over, used, lines = list(permutations(sorted(names))), [], []
    for text, rule in rng.sample(rules, len(rules)):
        fitting = [order for order in left_over if rule(order)]
        if len(fitting) < len(left_over):
            used.append(text)
            lines.append(f"{text} Of {len(left_over)} orders {len(fitting)} remain.")
            left_over = fitting
    orders = " or ".join(", ".join(order) for order in left_over)
    head = f"{joined(sorted(names))} sit in seats 1 to 4. {' '.join(used)} Who sits where?"
    return _text(head, *lines, f"From seat 1 to seat 4: {orders}.")


def _family(rng: Random) -> str:
    old, parent, uncle, child, cousin = rng.sample(NAMES, 5)
    facts = [
        f"{old} is the parent of {parent}.",
        f"{old} is the parent of {uncle}.",
        f"{parent} is the parent of {child}.",
        f"{uncle} is the parent of {cousin}.",
    ]
    shown = " ".join(rng.sample(facts, 4))
    ask, *steps = rng.choice(
        [
            (
                f"How is {old} related to {child}?",
                f"{child}'s parent is {parent}, and {parent}'s parent is {old}.",
                f"{old} is {child}'s grandparent.",
            ),
            (
                f"How are {child} and {cousin} related?",
                f"Their parents {parent} and {uncle} both have the parent {old}, so are siblings.",
                f"Children of siblings are cousins: {child} and {cousin} are cousins.",
            ),
            (
                f"How is {uncle} related to {child}?",
                f"{uncle} and {parent} are both children of {old}: siblings.",
                f"A sibling of {child}'s parent {parent} is an aunt or uncle of {child}.",
            ),
        ]
    )
    return _text(f"{shown} {ask}", *steps)


def _not_at(name: str, seat: int) -> Callable[[tuple[str, ...]], bool]:
    return lambda order: order[seat] != name


def _next_to(left: str, right: str) -> Callable[[tuple[str, ...]], bool]:
    return lambda order: order.index(left) + 1 == order.index(right)


def _before(left: str, right: str) -> Callable[[tuple[str, ...]], bool]:
    return lambda order: order.index(left) < order.index(right)


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _wrapped(text: str) -> str:
    return f"({text})" if " " in text else text


def _day(weekday: int) -> str:
    return "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()[weekday]


# Not strftime's: its names follow the reader's locale.
_MONTHS = (
    "January February March April May June July August September October November December"
).split()


_KINDS = (
    "cats dancers drummers farmers pilots poets robots sailors singers teachers tigers whales"
    " bakers birds artists painters swimmers readers lawyers horses owls foxes gardeners runners"
    " climbers potters tailors fishers hunters bees trees ships metals stones rivers stars moons"
    " engines"
).split()
_COMPARISONS = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("richer", "richest", "poorest"),
    ("louder", "loudest", "quietest"),
    ("heavier", "heaviest", "lightest"),
)
_HOBBIES = (
    "chess tea coffee football music swimming reading painting cooking dancing running cycling"
    " climbing fishing gardening singing"
).split()
_WINDS = ("north", "east", "south", "west")
_COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "purple", "grey", "pink")
_CHAINS = (
    ("wolf", "goat", "cabbage"),
    ("fox", "hen", "bag of corn"),
    ("lion", "sheep", "bale of hay"),
    ("dog", "rabbit", "carrot"),
    ("cat", "mouse", "piece of cheese"),
    ("eagle", "duck", "loaf of bread"),
)

FAMILIES: tuple[Callable[[Random], str], ...] = (
    *(_syllogism, _ordering, _truth_tellers, _sets, _navigation, _calendar, _blocks),
    *(_crossing, _boolean, _boxes, _seating, _family),
)
