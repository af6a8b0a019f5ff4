"""Links that lead nowhere, in HTML and Markdown: ``python tests/links.py FOLDER|FILE …``.

Within the given pages and the files beside them; what is on the network is not asked for.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


class Page(HTMLParser):
    """The links of a page, and what they can lead to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


@cache
def read(path: Path) -> tuple[tuple[str, ...], frozenset[str]]:
    """Links and anchors of a page; nothing of a file of another kind."""
    if path.suffix == ".html":
        page = Page(path.read_text(encoding="utf-8"))
        return tuple(page.links), frozenset(page.ids)
    if path.suffix != ".md":
        return (), frozenset()
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*?)\s*$", text, re.MULTILINE)
    prose = re.sub(r"`[^`\n]*`", "", text)
    return tuple(re.findall(r"\]\(([^)\s]+)\)", prose)), frozenset(map(slug, headings))


def slug(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken(pages: Iterable[Path]) -> Iterator[str]:
    """Page and link of each that leads nowhere."""
    for page in pages:
        for link in read(page)[0]:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = page.parent / unquote(url.path) if url.path else page
            there = target.exists()
            if not there or (url.fragment and unquote(url.fragment) not in read(target)[1]):
                yield f"{page}: {link}"


def main(names: list[str]) -> int:
    """Prints each broken link; returns 1 if there are any."""
    given = [Path(name) for name in names]
    kinds = (".html", ".md")
    pages = [q for p in given for q in (sorted(p.rglob("*")) if p.is_dir() else [p])]
    pages = [page for page in pages if page.suffix in kinds]
    assert pages, "no pages"
    found = list(broken(pages))
    print("\n".join(found) or f"{len(pages)} pages, every link leads somewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
