"""Stored settings as values of a form: every control gets what it had, or what it has when nothing is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from genkit.demo.options import OWN, RECIPE, attentions
from genkit.pipelines.record import Record
from genkit.pipelines.text import join_pairs
from genkit.reading import file_digest

#: Settings that no form has and that are nobody's loss: what the model decides, where and in what this server
#: computes, what it writes, and what a form says in another way.
_ELSEWHERE = (
    "max_sequence_length", "fps", "backend", "device", "dtype", "enlarge", "num_videos", "output", "lora", "model",
    "recipe", "attention",
)  # fmt: skip


def shown(control: Any, value: Any) -> Any:
    """A stored value as a control shows it; one that is not stored as the control is when nothing is said."""
    if value in (None, (), [], {}, ""):
        empty = isinstance(control, gr.Textbox), isinstance(control, gr.Radio)
        return "" if empty[0] else None if empty[1] else control.value
    if isinstance(value, Mapping):
        return join_pairs(dict(value))
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float) and isinstance(control, gr.Textbox):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value) if isinstance(control, gr.Textbox) else value


def attention(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The choice of attention behind stored settings, among those that suit a model; empty where it is not offered."""
    recipe, method = settings.get("recipe"), settings.get("attention")
    choice = f"{RECIPE}{recipe}" if recipe else method or OWN
    offered = attentions(model)
    return {"attention": gr.update(choices=offered, value=choice)} if choice in offered else {}


def loras(record: Record, known: Mapping[str, Path]) -> dict[str, Any]:
    """The LoRAs of a run among those that can be chosen, told by what is in their files, and their strength.

    Args:
        record: of the run. known: files by the name they are chosen by.
    """
    wanted = record.made_with.get("lora_fingerprints")
    prints = [each for each in wanted if isinstance(each, str)] if isinstance(wanted, list) else []
    names = {file_digest(path)[:16]: name for name, path in known.items()} if prints else {}
    stored = record.settings.get("lora")
    strengths = [_strength(text) for text in stored] if isinstance(stored, list) else []
    return {"lora": [names[each] for each in prints if each in names], "lora_strength": next(iter(strengths), 1.0)}


def _strength(text: Any) -> float:
    """Of ``file@strength``; 1 where none is written."""
    try:
        return float(str(text).rpartition("@")[2])
    except ValueError:
        return 1.0


def left_out(usual: Mapping[str, Any], settings: Mapping[str, Any], placed: Sequence[str]) -> list[str]:
    """The stored settings that differ from what a form without a control for them would run with.

    Args:
        usual: what it runs with. settings: as stored. placed: names of what has a control, or is given in another way.
    """
    return [
        name
        for name, value in settings.items()
        if name in usual and value not in (usual[name], None) and name not in (*_ELSEWHERE, *placed)
    ]
