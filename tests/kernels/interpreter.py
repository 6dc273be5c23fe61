"""Running a file of checks in Triton's interpreter: the mode is fixed when triton is imported, so in a process of its
own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def run_checks(path: Path, seconds: int = 1800) -> int:
    """Run a file of tests with TRITON_INTERPRET=1; return how many passed. Fails with the whole report otherwise."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--durations=5",
            str(path),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert "skipped" not in report and "failed" not in report, report
    return int(re.search(r"(\d+) passed", report)[1])
