"""The look of the page: one accent colour on warm greys, in light and dark."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

_HERE = Path(__file__).parent
ACCENT = colors.Color(
    name="spruce", c50="#eefaf6", c100="#d5f2e8", c200="#aee4d3", c300="#79cfb8", c400="#44b39a", c500="#22977f",
    c600="#147a68", c700="#126255", c800="#124e45", c900="#11413a", c950="#042521",
)  # fmt: skip
GREY = colors.Color(
    name="slate-warm", c50="#fafaf9", c100="#f4f4f2", c200="#e7e6e3", c300="#d3d2ce", c400="#a5a49f", c500="#76756f",
    c600="#57564f", c700="#3f3f3a", c800="#262623", c900="#191917", c950="#10100f",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """The page's theme."""
    made = gr.themes.Base(
        primary_hue=ACCENT, secondary_hue=GREY, neutral_hue=GREY, text_size=sizes.text_md,
        spacing_size=sizes.spacing_md, radius_size=sizes.radius_lg,
        font=(fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    )  # fmt: skip
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_background_fill="*block_background_fill",
        block_label_background_fill_dark="*block_background_fill",
        block_label_border_width="0",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="*neutral_400",
        block_title_text_weight="600",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_transition="background-color .15s ease",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="*neutral_800",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
    )


@cache
def css() -> str:
    """The page's style sheet."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


@cache
def head() -> str:
    """What goes into the page's head: its script, and the frame's style sheet."""
    script, frame = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "frame.css"))
    return f"<script>\n{script}\n</script>\n<style>\n{frame}\n</style>"
