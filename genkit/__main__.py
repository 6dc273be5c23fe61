"""``python -m genkit`` and the ``genkit`` command."""

from __future__ import annotations

import sys

from genkit.cli import interrupt


def run() -> int:
    """The command, with Ctrl-C heeded from the first import on; see :func:`genkit.cli.main.main`."""
    try:
        interrupt.guard()
        from genkit.cli.main import main

        code = main()
    except KeyboardInterrupt:
        code = interrupt.INTERRUPTED
    if code in (interrupt.INTERRUPTED, interrupt.TERMINATED):
        interrupt.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
