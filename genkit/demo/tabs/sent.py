"""What controls send, before Gradio converts it: values as they are, and uploads as paths, so that one schema checks
them all and no picture is decoded unseen.

Events that use it are made with Gradio's ``preprocess=False``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from genkit.errors import UsageError, explain


def received(component: Any, value: Any, request: gr.Request) -> Any:
    """What a control of the form gives.

    Args:
        component: the control.
        value: as Gradio hands it on without preprocessing.
        request: that it came with.

    Returns:
        of pictures and clips the path of the upload or None; of several files the path and the name of each; of a
        canvas ``background`` (bytes, a path, or None) and ``layers`` (such, without None), or None when nothing was
        sent; of other controls the value.

    Raises:
        UsageError: a switch that is neither on nor off.
    """
    if isinstance(component, gr.Checkbox) and not isinstance(value, bool | None):
        raise UsageError(explain(str(component.label), value, "true or false"))
    if isinstance(component, gr.ImageEditor):
        return _painted(component, value, request)
    if isinstance(component, gr.File):
        every = value if isinstance(value, list) else [] if value is None else [value]
        return [(Path(each["path"]), each.get("orig_name") or Path(each["path"]).name) for each in every]
    if isinstance(component, gr.Image | gr.Video):
        return None if value is None else value["path"]
    return value


def _painted(component: gr.ImageEditor, value: Any, request: gr.Request) -> dict[str, Any] | None:
    """A page sends what is painted ahead, under a name that the value holds; programs send it in the value."""
    parts = value
    if value is not None and value.get("id") is not None:
        sessions = request.request.app.state_holder  # type: ignore[union-attr]
        session = sessions[request.session_hash]
        number = component._id
        found = session[number] if number in session else component
        sent = found.blob_storage.pop(value["id"], None)
        parts = None if sent is None else {"background": sent.background, "layers": sent.layers}
    if parts is None:
        return None
    background, *layers = (
        each["path"] if isinstance(each, dict) else each for each in (parts["background"], *(parts["layers"] or []))
    )
    return {"background": background, "layers": [layer for layer in layers if layer is not None]}
