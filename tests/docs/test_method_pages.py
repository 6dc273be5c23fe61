"""Every method has a page with the same headings, and the page names every setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genkit.attention import registry

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"
HEADINGS = [
    "When to use it", "Settings", "Formulas and paper", "Cost", "Densities", "Trained form", "Limits", "Example",
    "Checked",
]  # fmt: skip


@pytest.mark.parametrize("name", registry.names())
def test_every_method_has_a_page_with_the_same_headings(name):
    text = (PAGES / f"{name}.md").read_text()
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert text.startswith(f"# {name}\n") and [heading for heading in found if heading != "Measured"] == HEADINGS
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE):
        assert len(section.strip()) > 40


@pytest.mark.parametrize("name", registry.names())
def test_a_page_names_every_setting_and_the_paper(name):
    text = (PAGES / f"{name}.md").read_text()
    settings = text.partition("## Settings\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", settings))
    assert {field.name for field in registry.describe_method(name).fields} <= named
    assert re.search(r"^Papers?: ", text.partition("## Formulas and paper\n")[2], re.MULTILINE)
