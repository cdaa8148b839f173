"""Pages as a parser and a browser see them."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Tags with attributes, text by enclosing tag, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all_text(self) -> str:
        return "".join(text for tag, text in self.texts if tag not in ("style", "title"))


def browse(profile: Path, target: Path, *arguments: str) -> str:
    """The page's elements after it was loaded."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET.split(), f"--user-data-dir={profile}", *arguments, "--dump-dom", target.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def measured(profile: Path, page: str, width: int, what: str) -> str:
    """What a script of another document finds of the page, ``page``, in a window of so many pixels; it lets none of its own run."""
    (profile.parent / "page.html").write_text(page, encoding="utf-8")
    # A headless window has a least width of about 500 pixels, a frame has none.
    (profile.parent / "frame.html").write_text(
        f'<iframe src="page.html" style="width:{width}px;height:800px;border:0" onload="'
        f'const page = contentDocument; document.title = {what}"></iframe>'
    )
    dom = browse(profile, profile.parent / "frame.html", "--allow-file-access-from-files", "--window-size=1400,900")
    return dom.partition("<title>")[2].partition("</title>")[0]


def phone_width(profile: Path, page: str) -> str:
    """``CONTENT of WINDOW``: the width of a page in a window of 390 pixels, every part of it unfolded."""
    unfolded = page.replace("<details>", "<details open>")
    return measured(profile, unfolded, 390, "page.documentElement.scrollWidth + ' of ' + contentWindow.innerWidth")


def hidden_sideways(profile: Path, page: str, label: str) -> int:
    """Pixels of the table box called ``label`` that a window of 1200 pixels does not show."""
    box = f"page.querySelector('[aria-label=&quot;{label}&quot;]')"
    return int(measured(profile, page, 1200, f"{box}.scrollWidth - {box}.clientWidth"))
