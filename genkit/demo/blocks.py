"""Gradio's blocks, which answer what they cannot read with a message instead of a traceback in the log, and keep no
more of a session than its components."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr

from genkit.demo.engine.messages import for_visitor
from genkit.reading.files import reason

log = logging.getLogger("genkit.demo")
#: Begins Gradio's message about a file that was not uploaded; the rest names folders of the server.
_ELSEWHERE = "Cannot move "
#: Begins Gradio's explanation of a call with too few values; the rest is for who writes such functions.
_FOR_AUTHORS = re.compile(r"\. Check if the event handler.*")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class Blocks(gr.Blocks):
    """As Gradio's, but malformed requests become one line of the log and of the answer, and sessions do not grow."""

    #: Whether a file may be named by an address of the net, which Gradio downloads whatever its size. Language models
    #: have no other way.
    addresses = False

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *given: Any, **named: Any) -> Any:
        """Read what a page or a program sent; see :meth:`gradio.Blocks.preprocess_data`.

        Raises:
            gradio.Error: it is of a form that no control sends, or names a file that was not uploaded.
        """
        try:
            if not self.addresses and any(_ADDRESS.match(path) for path in _paths(inputs)):
                raise ValueError(_ELSEWHERE + "what lies elsewhere in the net")
            return await super().preprocess_data(block_fn, inputs, *given, **named)
        except Exception as error:  # whatever Gradio and its data models raise about values from outside
            text = " ".join(_said(error).split())
            log.warning("refused: %s: %s", type(error).__name__, for_visitor(text))
            told = "Only files that you upload here are opened" if text.startswith(_ELSEWHERE) else for_visitor(text)
            raise gr.Error(told, title="Not understood", print_exception=False, duration=12) from None

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Make what a page gets; see :meth:`gradio.Blocks.postprocess_data`.

        Gradio keeps a changed component under its old number in the session, but lets it count as a new one: with the
        next plain value it is kept under that number as well, and every run leaves some components more. So it gets its
        old number back.
        """
        found = await super().postprocess_data(block_fn, predictions, state)
        for block in block_fn.outputs if state is not None else ():
            if not block.stateful and block._id in state:
                state[block._id]._id = block._id
        return found


def _paths(value: Any) -> Iterator[str]:
    """The places of files in what was sent, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from _paths(each)


def _said(error: Exception) -> str:
    """What Gradio and its data models raise, without what is for who writes such programs."""
    if isinstance(error, OSError):
        return reason(error)
    listed = getattr(error, "errors", None)
    if callable(listed):  # of pydantic: one a field
        return "; ".join(": ".join([*map(str, each["loc"]), each["msg"]]) for each in listed())
    return _FOR_AUTHORS.sub("", str(error)) or type(error).__name__
