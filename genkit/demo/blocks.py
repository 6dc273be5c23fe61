"""Gradio's blocks, which answer what they cannot read with a message instead of a traceback in the log."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from genkit.demo.engine.messages import for_visitor

log = logging.getLogger("genkit.demo")
#: Begins Gradio's message about a file that was not uploaded; the rest names folders of the server.
_ELSEWHERE = "Cannot move "


class Blocks(gr.Blocks):
    """As Gradio's, but malformed requests become one line of the log and of the answer."""

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
