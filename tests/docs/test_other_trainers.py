"""The page about other trainers: its tables are the trainer's own, and its configurations are read."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages as reader  # noqa: E402

from genkit.pipelines.request import read_config  # noqa: E402
from genkit.training.lora.counterparts import NAMES, WITHOUT, counterpart, flattened, known  # noqa: E402
from genkit.training.lora.settings import LoraSettings  # noqa: E402

PAGE = reader.ROOT / "docs" / "tasks" / "coming-from-other-trainers.md"
CONFIGS = [block for block in reader.blocks(PAGE) if block.language in ("yaml", "toml")]
SETTINGS = LoraSettings.field_names()


def rows(heading: str) -> list[list[str]]:
    """Cells of the tables under a heading, their own headings left out."""
    text = PAGE.read_text().split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if not line.startswith("| ---") and not after.startswith("| ---")
    ]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_lists_of_names_are_those_that_the_trainer_answers_with():
    found = rows("## All names")
    here = {
        names(first)[0]: " ".join(names(second))
        for first, second in found
        if first.count("`") == 2 and second[0] == "`"
    }
    without = {" ".join(names(first)): second for first, second in found if second[0] != "`"}
    assert here == NAMES and without == WITHOUT and len(found) == len(NAMES) + len(WITHOUT)


def test_every_name_of_the_short_table_is_answered_with_its_row():
    told = rows("# Coming from other trainers")
    assert len(told) > 15
    for _, here, *others in told:
        setting = names(here)[0]
        assert setting in SETTINGS
        for name in (name for cell in others for name in names(cell)):
            plain = name.split(".")[-1]
            assert plain == setting or f"is {setting} here" in counterpart(name, SETTINGS), (name, setting)


@pytest.mark.parametrize("index", range(0, len(CONFIGS), 2))
def test_configurations_are_read_here_and_those_of_others_are_answered(index, tmp_path):
    before, after = CONFIGS[index : index + 2]
    foreign = tomllib.loads(before.text) if before.language == "toml" else yaml.safe_load(before.text)
    unknown = list(flattened(foreign, SETTINGS))
    assert len(unknown) > 3
    for name in unknown:
        assert known(name) or "no setting" not in counterpart(name, SETTINGS), name
    (tmp_path / "lora.yaml").write_text(after.text)
    settings = LoraSettings.from_mappings(("the page", read_config(tmp_path / "lora.yaml")))
    assert settings.model and settings.output.startswith("runs/")


def test_there_are_three_pairs_of_configurations():
    assert len(CONFIGS) == 6
