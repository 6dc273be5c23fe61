"""The page's controls, built from what settings say of themselves: name, help, smallest and largest value.

Values reach the settings as they were sent: their schema checks them, in one place for the page and for programs.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import gradio as gr

from genkit.demo.engine.messages import label
from genkit.demo.options import OWN, Offer, attentions
from genkit.pipelines.request import Settings
from genkit.schema import RULE, Rule, hints_of, kinds
from genkit.schema import number as parse_number

#: Largest number that is drawn for a seed: it is read off the page and typed again.
SEEDS = 2**31
#: Variants at a time.
MOST = 4


def rule_of(kind: type[Settings], name: str) -> Rule:
    """The rule of a setting."""
    return kind.__dataclass_fields__[name].metadata[RULE]


def help_of(kind: type[Settings], name: str) -> str:
    """The one line that explains a setting."""
    return kind.__dataclass_fields__[name].metadata["help"]


def number(name: str, value: Any = None, **more: Any) -> gr.Textbox:
    """A number that may be left open: the model's own value, shown in grey, is then taken.

    It is a line of text, since a field for numbers shows 0 where nothing is written.
    """
    return gr.Textbox(label=label(name), placeholder=open_value(value), max_lines=1, **{"min_width": 90} | more)


def open_value(value: Any) -> str:
    """What stands in an empty field."""
    return "the model's own" if value is None else f"{value:g}" if isinstance(value, (int, float)) else str(value)


def written(kind: type[Settings], given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The numbers of fields that were filled in.

    Raises:
        UsageError: no number.
    """
    found = {}
    for name in names:
        value = given.get(name)
        if isinstance(value, str):
            whole = int in kinds(hints_of(kind)[name])  # type: ignore[arg-type]
            value = parse_number(value, int if whole else float, label(name)) if value.strip() else None
        found[name] = value
    return found


def slider(kind: type[Settings], name: str, low: float, high: float, step: float, value: float, **more: Any) -> Any:
    """A number within the range that makes sense; the box beside it takes what the setting allows."""
    given = {"label": label(name), "info": help_of(kind, name)}
    return gr.Slider(low, high, value=value, step=step, **given | more)


def text(kind: type[Settings], name: str, **more: Any) -> gr.Textbox:
    """A line of text."""
    given = {"label": label(name), "info": help_of(kind, name)}
    return gr.Textbox(**given | more)


def model_choice(offer: Offer, kinds: tuple[str, ...], first: str | None = None) -> gr.Dropdown:
    """The models that make one of these kinds; any other where the server allows it."""
    names = offer.models_of(*kinds) or list(offer.models)
    value = first if first in names else names[0]
    info = "A shipped name, a folder of the server, or owner/name of the hub." if offer.any_model else None
    return gr.Dropdown(names, value=value, label="Model", info=info, allow_custom_value=offer.any_model)


def seed_row() -> tuple[gr.Number, gr.Checkbox]:
    """Seed, dice and lock. Without the lock every run draws a new seed and shows it."""
    with gr.Row(elem_classes="seed-row"):
        seed = gr.Number(value=0, precision=0, minimum=0, label="Seed", min_width=90, elem_classes="seed")
        dice = gr.Button("⚄", elem_classes="dice", min_width=46, elem_id=None)
        lock = gr.Checkbox(value=False, label="Keep", container=False, min_width=76, elem_classes="lock")
    dice.click(lambda: new_seed(), None, seed, queue=False, api_visibility="private", show_progress="hidden")
    return seed, lock


def variants() -> gr.Slider:
    """How many outputs one run makes."""
    return gr.Slider(1, MOST, value=1, step=1, label="Variants", info="Outputs with seeds in a row, to choose from.")


def new_seed() -> int:
    """A seed that people can read."""
    return secrets.randbelow(SEEDS)


def attention_choice(
    model: str, *, own: bool = True, value: str = OWN, where: str = ""
) -> tuple[gr.Dropdown, gr.Textbox, gr.Textbox]:
    """The method or recipe, its settings, and where it applies."""
    names = attentions(model)
    choice = gr.Dropdown(
        names if own else names[1:], value=value, label="Attention", elem_classes="attention",
        info="Which attention the model computes with; a recipe is a method with settings that were measured.",
    )  # fmt: skip
    with gr.Row():
        args = gr.Textbox(label="Settings of the method", placeholder="size=5x5", min_width=140)
        places = gr.Textbox(
            label="Where it applies", placeholder="steps=2:-2,layers=1:", min_width=140, value=where or None
        )
    return choice, args, places


def follow_model(model: gr.Dropdown, attention: gr.Dropdown) -> None:
    """Offer the recipes that suit the model, whoever changed it; what is chosen stays where it suits."""
    model.change(suited, [model, attention], attention, queue=False, api_visibility="private", show_progress="hidden")


def suited(model: str, chosen: Any, own: bool = True) -> Any:
    """A change of the choice of attention for a model."""
    choices = attentions(model) if own else attentions(model)[1:]
    return gr.update(choices=choices, value=chosen if chosen in choices else choices[0])


def lora_choice(offer: Offer) -> tuple[gr.Dropdown, gr.Slider]:
    """The LoRAs of the server and those that the visitor trained, and their strength."""
    with gr.Row():
        names = gr.Dropdown(
            list(offer.loras), value=[], multiselect=True, label="LoRA", min_width=160,
            info="Those of the server, and what you train here.",
        )  # fmt: skip
        strength = gr.Slider(0, 2, value=1, step=0.05, label="Strength of the LoRA", min_width=140)
    return names, strength
