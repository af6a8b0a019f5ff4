"""Tasks from files on this machine, each item asked in one form: ``docs/tasks.md``."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s7jax.errors import InputError
from s7jax.s7l.schema import read_json

Item = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A file of questions.

    Attributes:
        name: as it is shown.
        domain: folder of the file, and what it is counted under.
        pattern: the file's name there.
        items: what is asked, of its records: ``query`` and ``choices`` with the index ``gold``;
            ``query`` and ``answer``; or ``text`` alone.
        program: of an item and an answer, the program that must end well if the answer is right.
    """

    name: str
    domain: str
    pattern: str
    items: Callable[[list[Any]], Iterator[Item]]
    program: Callable[[Item, str], str] | None = None

    def read(self, folder: Path, most: int | None = None) -> list[Item]:
        """The items of a folder of tasks.

        Raises:
            InputError: a file that cannot be read, or has other fields.
        """
        path = folder / self.domain / self.pattern
        try:
            if path.suffix == ".txt":
                records: list[Any] = [path.read_text()]
            elif path.suffix == ".jsonl":
                records = [json.loads(line) for line in path.read_text().splitlines() if line]
            else:
                found = read_json(path)
                records = found["examples"] if isinstance(found, dict) else found
            return list(self.items(records))[:most]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
            raise InputError(f"{path}: not the questions of {self.name}: {e!r}") from e


def _question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def _choices(query: str, choices: list[str], gold: int) -> Item:
    return {"query": query, "choices": [f" {c}" for c in choices], "gold": gold}


def _answer(query: str, answer: str, **more: str) -> Item:
    return {"query": query, "answer": answer, **more}


def _gsm8k(records: list[Any]) -> Iterator[Item]:
    for r in records:
        yield _answer(_question(r["question"]), f" {r['answer']}")


def _svamp(records: list[Any]) -> Iterator[Item]:
    for r in records:
        question = f"{r['Body'].rstrip('. ')}. {r['Question']}"
        yield _answer(_question(question), f" {r['Answer']:g}")


def _aqua(records: list[Any]) -> Iterator[Item]:
    for r in records:
        options = [option.split(")", 1)[1] for option in r["options"]]
        yield _choices(_question(r["question"]), options, "ABCDE".index(r["correct"]))


def _mmlu(records: list[Any]) -> Iterator[Item]:
    for r in records:
        yield _choices(_question(r["question"]), r["choices"], r["answer"])


def _strategy(records: list[Any]) -> Iterator[Item]:
    for r in records:
        yield _choices(_question(r["question"]), ["no", "yes"], int(r["answer"]))


def _bbh(records: list[Any]) -> Iterator[Item]:
    choices = sorted({r["target"] for r in records})
    for r in records:
        yield _choices(f"Q: {r['input']}\nA:", choices, choices.index(r["target"]))


def _entailment(records: list[Any]) -> Iterator[Item]:
    for r in records:
        yield _answer(f"{r['input']}\n", r["output"])


def _crux(records: list[Any]) -> Iterator[Item]:
    for r in records:
        yield _answer(f"{r['code']}\n\nassert f({r['input']}) ==", f" {r['output']}")


def _humaneval(records: list[Any]) -> Iterator[Item]:
    for r in records:
        tests = f"{r['test']}\ncheck({r['entry_point']})\n"
        yield _answer(r["prompt"], r["canonical_solution"], tests=tests)


def _mbpp(records: list[Any]) -> Iterator[Item]:
    for r in records:
        tests = "\n".join(r["test_list"]) + "\n"
        code = r["code"].replace("\r\n", "\n")
        setup = r["test_setup_code"]
        yield _answer(f'"""{r["text"]}\n{tests}"""\n', f"{code}\n", tests=f"{setup}\n{tests}")


def _text(records: list[Any]) -> Iterator[Item]:
    for article in re.split(r"\n (?== [^=])", records[0]):
        if article.strip():
            yield {"text": article}


def _function(item: Item, answer: str) -> str:
    """Up to the first line that is not the function's."""
    body = re.split(r"\n(?=[^\s)#@])", answer)[0]
    return f"{item['query']}{body}\n{item['tests']}"


def _module(item: Item, answer: str) -> str:
    return f"{answer.split(chr(34) * 3, maxsplit=1)[0]}\n{item['tests']}"


def _number(item: Item, answer: str) -> str:
    """The number after ``####`` of the answer must be that of the key."""
    found = [re.search(r"#### *(-?[\d,.]+)", text) for text in (item["answer"], answer)]
    numbers = [match[1].replace(",", "").rstrip(".") if match else "" for match in found]
    return f"assert {numbers[0]!r} == {numbers[1]!r}\n"


BBH = (
    *("boolean_expressions", "date_understanding", "logical_deduction_three_objects"),
    *("navigate", "object_counting", "web_of_lies"),
)
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("cruxeval", "code", "cruxeval.jsonl", _crux),
        Task("humaneval", "code", "humaneval.jsonl", _humaneval, _function),
        Task("mbpp", "code", "mbpp_validation.jsonl", _mbpp, _module),
        Task("gsm8k", "math", "gsm8k_test_400.jsonl", _gsm8k, _number),
        Task("svamp", "math", "svamp.json", _svamp),
        Task("aqua", "math", "aqua_dev.jsonl", _aqua),
        *(Task(f"bbh_{name}", "reasoning", f"bbh/{name}.json", _bbh) for name in BBH),
        Task("strategyqa", "reasoning", "strategyqa_dev.json", _strategy),
        Task("entailmentbank", "reasoning", "entailmentbank_task1_test.jsonl", _entailment),
        Task("mmlu", "general", "mmlu_dev.jsonl", _mmlu),
        Task("wikitext2", "general", "wikitext2_valid.txt", _text),
    )
}
