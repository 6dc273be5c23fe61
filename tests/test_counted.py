"""Numbers with nouns in messages: one frame is "1 frame", and no room that users hear from writes its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from genkit.errors import counted

ROOT = Path(__file__).resolve().parents[1] / "genkit"
#: Rooms whose messages people read.
ROOMS = (
    "cli", "demo", "pipelines", "streaming", "editing", "media", "lora", "training/lora", "training/data",
    "training/distill", "training/engine",
)  # fmt: skip
NOUNS = (
    "batches|blocks|boxes|calls|captions|channels|characters|chunks|clips|entries|epochs|files|frames|heads|images|items|"
    "keyframes|keywords|layers|lines|LoRAs|minutes|modules|numbers|ones|outputs|parameters|pictures|pixels|prompts|rows|"
    "runs|samples|scenes|seconds|seeds|settings|shots|sounds|steps|subjects|tensors|threads|tiles|tokens|values|variants|"
    "videos|weights|words"
)
_NOUN = re.compile(rf"^ (?:\w+ )?(?:{NOUNS})\b(?! per\b)")
#: Numbers that are never 1 where they are told.
NEVER_ONE = {
    ("pipelines/tasks/storyboard/chain.py", "calls"), ("pipelines/tasks/storyboard/chain.py", "given"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 frames"), (1, "1 frame"), (2, "2 frames"), (1.0, "1.0 frame"), (1.5, "1.5 frames"), ("1", "1 frame"),
     ("5 or 9", "5 or 9 frames"), ("the usual", "the usual frames"), (None, "None frames"), (np.int64(1), "1 frame"),
     (torch.tensor(2).item(), "2 frames")],
)  # fmt: skip
def test_one_is_one_and_all_others_are_several(count, told):
    assert counted(count, "frame") == told


def test_nouns_with_other_forms_and_verbs():
    assert [counted(count, "batch", "batches") for count in (1, 2)] == ["1 batch", "2 batches"]
    assert [counted(count, "file is", "files are") for count in (1, 3)] == ["1 file is", "3 files are"]


def _numbers_of_their_own(path: Path):
    """Counts in f-strings that a noun of several stands behind, whatever the count is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = (None, *node.values)
        for by, number, words in zip(before, node.values, node.values[1:], strict=False):
            if not (isinstance(number, ast.FormattedValue) and isinstance(words, ast.Constant)):
                continue
            if isinstance(by, ast.Constant) and by.value == "x":  # "64x64 pixels"
                continue
            told = ast.unparse(number.value)
            counts = re.match(r"(?:len|sum|max|min)\(", told) or re.search(
                r"(?:^|[._\['])(?:count|frames|steps|tokens|total|given|calls|samples|pictures|clips|rows|batch)(?:'\])?$",
                told,
            )
            if counts and _NOUN.match(words.value):
                yield told, words.value


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_writes_a_noun_of_several_behind_a_count(room):
    found = [
        (str(path.relative_to(ROOT)), told, words)
        for path in sorted((ROOT / room).rglob("*.py"))
        for told, words in _numbers_of_their_own(path)
    ]
    assert [each for each in found if each[:2] not in NEVER_ONE] == []


def test_the_look_finds_such_numbers(tmp_path):
    tmp_path.joinpath("a.py").write_text('a = f"{len(x)} frames of {y} files, {self.count} latent frames at {fps} s"')
    assert [told for told, _ in _numbers_of_their_own(tmp_path / "a.py")] == ["len(x)", "self.count"]
