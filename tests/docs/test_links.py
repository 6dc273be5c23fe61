"""Every link of every page leads somewhere: to a file, to a heading, or well-formed to the web."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages as reader  # noqa: E402


@pytest.mark.parametrize("page", reader.pages(), ids=reader.name)
def test_every_link_leads_somewhere(page):
    broken = []
    for link in reader.links(page):
        if re.match(r"(https?|mailto):", link):
            if not re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?|mailto:\S+@\S+", link):
                broken.append(link)
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists():
            broken.append(link)
        elif anchor and (target.suffix != ".md" or anchor not in reader.anchors(target)):
            broken.append(link)
    assert not broken, f"{reader.name(page)} links to what does not exist: {broken}"


def test_the_reader_finds_links_anchors_and_blocks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, and `code`\n\n[one](a.md#b) ![two](c.png) `[no](d.md)`\n\n"
        "```\n[no](e.md)\ngenkit generate \\\n    x   # say\n```\n<!-- parsed only: too large -->\n```python\n1\n```\n"
    )
    assert reader.links(page) == ["a.md#b", "c.png"]
    assert reader.anchors(page) == {"a-title-and-code"}
    first, second = reader.blocks(page)
    assert (first.language, first.parsed_only, first.line) == ("", None, 6)
    assert [reader.words(line) for line in reader.commands(first.text)] == [["[no](e.md)"], ["genkit", "generate", "x"]]
    assert (second.language, second.text, second.parsed_only) == ("python", "1", "too large")
