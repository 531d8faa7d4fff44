"""Reads a page as a browser would, as far as its structure goes."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags that are closed in order, text, and whatever is fetched or run.

    Attributes:
        text: Of all elements.
        fetched: Values of ``src`` and ``href`` that are neither data nor a place in the page.
        scripts: Elements and attributes that run something.
        anchors: Values of ``id``, all different.
        named: Those that are referred to, all there.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.fetched, self.scripts, self.anchors = "", list[str](), list[str](), list[str]()
        self.named: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.anchors) == len(set(self.anchors))
        assert self.named <= set(self.anchors)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not str(value).startswith(("data:image/", "#")):
                self.fetched.append(str(value))
            if name in ("href", "xlink:href", "clip-path"):
                self.named |= set(re.findall(r"#([\w-]+)", str(value)))
            if name.startswith("on"):
                self.scripts.append(name)
            if name == "id":
                self.anchors.append(str(value))
        if tag in ("script", "iframe", "object", "embed", "link"):
            self.scripts.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        assert "url(http" not in data
        assert "@import" not in data
