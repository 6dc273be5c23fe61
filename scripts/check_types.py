"""Type errors may only get fewer: counts mypy's errors and compares them with the number in ``check_types.count``.

``python scripts/check_types.py``           fails when there are more errors than the stored number
``python scripts/check_types.py --update``  stores the present number if it is smaller
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORED = Path(__file__).with_suffix(".count")


def errors(output: str) -> list[str]:
    """The lines of mypy's output that are errors (notes and the summary left out)."""
    return [line for line in output.splitlines() if re.match(r"[^:]+:\d+: error: ", line)]


def room(line: str) -> str:
    """``genkit/kernels/plan/x.py:3: error: ...`` -> ``genkit/kernels``."""
    return "/".join(Path(line.split(":", 1)[0]).parts[:2])


def verdict(found: list[str], allowed: int) -> tuple[int, str]:
    """Exit code and report for the errors found when ``allowed`` are stored."""
    rooms = ", ".join(f"{name} {count}" for name, count in sorted(Counter(map(room, found)).items()))
    line = f"type errors: {len(found)} (stored: {allowed})" + (f"; {rooms}" if rooms else "")
    if len(found) > allowed:
        return 1, "\n".join([*found, line, f"{len(found) - allowed} more than stored: mend the new ones."])
    if len(found) < allowed:
        line += "\nfewer than stored: run `python scripts/check_types.py --update` and commit the number."
    return 0, line


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--update"]):
        print(__doc__, file=sys.stderr)
        return 2
    mypy = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    if mypy.returncode not in (0, 1) or (mypy.returncode == 1 and not errors(mypy.stdout)):
        print(f"mypy did not run (exit {mypy.returncode}):\n{mypy.stdout}{mypy.stderr}", file=sys.stderr)
        return 2
    found, allowed = errors(mypy.stdout), int(STORED.read_text())
    if arguments and len(found) < allowed:
        STORED.write_text(f"{len(found)}\n")
        allowed = len(found)
    code, report = verdict(found, allowed)
    print(report)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
