"""Gradio's blocks, which answer what they cannot read with a message instead of a traceback in the log, and keep no
more of a session than its components."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from genkit.demo.engine.messages import for_visitor

log = logging.getLogger("genkit.demo")
#: Begins Gradio's message about a file that was not uploaded; the rest names folders of the server.
_ELSEWHERE = "Cannot move "


class Blocks(gr.Blocks):
    """As Gradio's, but malformed requests become one line of the log and of the answer, and sessions do not grow."""

    async def preprocess_data(self, *given: Any, **named: Any) -> Any:
        """Read what a page or a program sent; see :meth:`gradio.Blocks.preprocess_data`.

        Raises:
            gradio.Error: it is of a form that no control sends, or names a file that was not uploaded.
        """
        try:
            return await super().preprocess_data(*given, **named)
        except Exception as error:  # whatever Gradio and its data models raise about values from outside
            text = " ".join((str(error) or type(error).__name__).split())
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
