"""What controls hand on: values as they were sent, and uploads as paths, so that one schema checks them all.

Gradio would convert values first, decode pictures, and answer in its own words. It makes controls anew whenever the
page changes one, so what to hand on is a class of the control's style sheet (``elem_classes``), which stays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr


def _path(component: Any, payload: Any) -> str | None:
    return None if payload is None else payload.path


def _files(component: Any, payload: Any) -> list[tuple[Path, str]]:
    sent = [] if payload is None else getattr(payload, "root", payload)
    every = sent if isinstance(sent, list) else [sent]
    return [(Path(each.path), each.orig_name or Path(each.path).name) for each in every]


def _layers(component: Any, payload: Any) -> dict[str, Any] | None:
    if payload is None:
        return None
    sent = component.blob_storage.pop(payload.id, None) if payload.id is not None else payload
    if sent is None:
        return None
    parts = (sent.background, *(sent.layers or []))
    background, *layers = (each if isinstance(each, bytes) or each is None else each.path for each in parts)
    return {"background": background, "layers": [layer for layer in layers if layer is not None]}


_WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "sent-as-it-is": lambda component, payload: payload,
    "sent-as-path": _path,
    "sent-as-files": _files,
    "sent-as-layers": _layers,
}
_KINDS = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.Radio, gr.Dropdown, gr.Image, gr.Video, gr.File,
          gr.ImageEditor)  # fmt: skip


def sent_by(component: Any, way: str) -> Any:
    """Let a control hand on what it gets in one of the ways above."""
    component.elem_classes = [*component.elem_classes, way]
    component._constructor_args[0]["elem_classes"] = component.elem_classes
    return component


def _heeding(kind: Any) -> None:
    """Let marked controls of a kind hand on what they get; others do as before."""
    usual = kind.preprocess

    def preprocess(self: Any, payload: Any) -> Any:
        way = next((_WAYS[each] for each in self.elem_classes or () if each in _WAYS), None)
        return usual(self, payload) if way is None else way(self, payload)

    kind.preprocess = preprocess


for _kind in _KINDS:
    _heeding(_kind)
