"""The count of type errors: what counts as one, and which way the number may go."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_types.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_types", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OUTPUT = """genkit/kernels/a.py:3: error: Value of type "int" is not indexable  [index]
genkit/kernels/a.py:9: note: See the manual
genkit/world/b.py:1: error: "None" has no attribute "x"  [attr-defined]
Found 2 errors in 2 files (checked 9 source files)
"""


def test_only_error_lines_count(check):
    assert [check.room(line) for line in check.errors(OUTPUT)] == ["genkit/kernels", "genkit/world"]


@pytest.mark.parametrize(
    ("allowed", "code", "says"), [(1, 1, "1 more than stored"), (2, 0, "(stored: 2)"), (3, 0, "--update")]
)
def test_more_errors_than_stored_fail_and_fewer_ask_for_the_new_number(check, allowed, code, says):
    got, report = check.verdict(check.errors(OUTPUT), allowed)
    assert got == code and says in report
    assert ("a.py:3" in report) == (code == 1)  # the lines themselves are shown when there is something to mend
