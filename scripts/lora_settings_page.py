"""The page of all settings of genkit train lora, from the settings themselves: python scripts/lora_settings_page.py

It writes docs/lora-settings.md; a test compares the two.
"""

from __future__ import annotations

import dataclasses
from itertools import groupby
from pathlib import Path

from genkit.pipelines.request import flag
from genkit.schema import hints_of, kinds
from genkit.training.lora.settings import LoraSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lora-settings.md"
HEAD = """# Settings of a LoRA run

Every key of a configuration for `genkit train lora --config lora.yaml`, which is a flag of the same name too
(`learning_rate`, `--learning-rate`). Flags win over the file. Names are those of Diffusers' scripts;
[other trainers' names](tasks/coming-from-other-trainers.md).
This page is written by `python scripts/lora_settings_page.py`.
"""
TYPES = {bool: "switch", int: "whole number", float: "number", str: "text", tuple: "list", dict: "names and values"}


def page() -> str:
    """The page's text."""
    fields = [field for field in dataclasses.fields(LoraSettings)]
    lines = [HEAD]
    for group, members in groupby(fields, key=lambda field: field.metadata["group"]):
        lines += [
            f"## {group}",
            "",
            "| setting | flag | type | default | what it is |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [row(field) for field in members]
        lines.append("")
    return "\n".join(lines)


def row(field: dataclasses.Field) -> str:
    """One setting."""
    kind = TYPES[kinds(hints_of(LoraSettings)[field.name])[0]]
    empty = field.default is dataclasses.MISSING or field.default in (None, (), "")
    default = "" if empty else f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
    said = field.metadata["help"].replace("|", r"\|")
    return f"| `{field.name}` | `{flag(field.name)}` | {kind} | {default} | {said} |"


if __name__ == "__main__":
    PAGE.write_text(page())
