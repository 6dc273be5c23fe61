"""Reads the Markdown pages of the project: links, anchors, blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARSED_ONLY = re.compile(r"<!-- parsed only: (.+?) -->")


def pages() -> list[Path]:
    """Every page a reader may open."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("genkit/models/*/README.md")]
    found += ROOT.glob("integrations/*/README.md")
    return sorted([*found, *ROOT.glob("examples/*.md"), *ROOT.glob("benchmarks/**/*.md")])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" for commands), text, first line, and why it is not run, if it is not."""

    page: Path
    language: str
    text: str
    line: int
    parsed_only: str | None = None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page. ``<!-- parsed only: REASON -->`` on the line before keeps one from being run."""
    found, lines, start = [], page.read_text().splitlines(), None
    for number, line in enumerate(lines):
        if start is None and line.lstrip().startswith("```"):
            start, language = number, line.strip().strip("`").strip()
        elif start is not None and line.strip() == "```":
            said = next((text for text in reversed(lines[:start]) if text.strip()), "")
            reason = PARSED_ONLY.fullmatch(said.strip())
            text = "\n".join(lines[start + 1 : number])
            found.append(Block(page, language, text, start + 2, reason.group(1) if reason else None))
            start = None
    assert start is None, f"{page}: the block of line {start} is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```\s*?$", "", page.read_text(), flags=re.S | re.M)


def links(page: Path) -> list[str]:
    """Targets of links and pictures, inline code left out."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    return re.findall(r"\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)?)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the built pages make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", prose(page), flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found


def commands(text: str) -> list[str]:
    """The commands of a block: continued lines joined, comments and empty lines dropped."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def words(command: str) -> list[str]:
    """A command as the shell would split it."""
    return shlex.split(command, comments=True)


def inline_commands(page: Path) -> list[str]:
    """`genkit ...` in running text."""
    return [code.replace("\n", " ") for code in re.findall(r"`(genkit [^`]+)`", prose(page))]
