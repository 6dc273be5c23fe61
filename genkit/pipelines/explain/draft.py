"""The draft of a record from what was found: Python text that a newcomer completes."""

from __future__ import annotations

import re

from genkit.errors import counted
from genkit.families.lookup import short_name
from genkit.pipelines.explain.inputs import CLOCKS, Guess
from genkit.pipelines.explain.watch import Attended, Explanation


def draft(found: Explanation) -> str:
    """A record as the text of a module. What must be looked at is marked with ``CHECK``; what is missing is said."""
    name = short_name(found.name)
    served = [group for group in found.groups if group.role]
    joint = any(group.role == "joint" for group in served)
    lines = [
        f'"""{name}: drafted from one forward without numbers; every CHECK is to be looked at."""',
        "",
        "from genkit.families.base import Family, SiteRule, shape",
        "from genkit.families.facts import PipelineFacts",
        f"from genkit.families.grids import {_rule_names(found, joint)}",
        "",
        *_streams(found, name, joint),
        "",
        "FAMILY = Family(",
        f'    name="{name}",',
        f'    classes=("{found.name}",),',
        "    pipelines=(),  # CHECK: the usual pipeline classes",
        "    rules=(",
        *[f"        {_site_rule(group)}" for group in served],
        *[f"        # CHECK: no rule for {group.pattern}: {group.why}" for group in found.groups if not group.role],
        *([] if found.groups else [f"        # CHECK: looks like attention: {each}" for each in found.likely]),
        "    ),",
        "    streams=STREAMS,",
        f"    reads={_reads(found.guess, joint)},",
        f'    sample="{found.guess.sample if found.guess else "hidden_states"}",',
        f'    timestep="{_clock(found.guess)}",',
        f"    order={_order(served)},",
        f'    grid="{_grid_words(found)}",',
        f'    text="{_text(found, joint)}",{_text_check(found, joint)}',
        f"    video={bool(found.grid and found.grid[0] > 1)},",
        *_names(served),
        f'    facts=PipelineFacts(pattern=r"{re.escape(name.replace(" ", ""))}.*"),  # CHECK: your pipelines\' names',
        ")",
    ]
    return "\n".join(lines) + "\n"


def _rule_names(found: Explanation, joint: bool) -> str:
    if found.guess is not None and "img_ids" in found.guess.args:
        return "text_image_references"
    return f"{'with_text' if joint else 'alone'}, latent_grid"


def _streams(found: Explanation, name: str, joint: bool) -> list[str]:
    guess = found.guess
    if guess is not None and "img_ids" in guess.args:
        return ["# CHECK: text, then the image that img_ids tell", f'STREAMS = text_image_references("{name}")']
    if guess is None or found.grid is None:
        return [
            "# CHECK: where the (T, H, W) grid of tokens comes from was not found; here: the latents' own sizes",
            f'STREAMS = alone(latent_grid("{name}", "BCTHW", patch=""))',
        ]
    if guess.axes == "BNC":
        return [
            "# CHECK: the latents come as tokens; write a function from (model, arguments) to their grid, see grids.py",
            f'STREAMS = alone(latent_grid("{name}", "BCTHW", patch=""))',
        ]
    before, rule = _latents(found, guess, name)
    if not joint:
        return [*before, f"STREAMS = alone({rule})"]
    text = next((key for key in guess.args if key.startswith(("encoder_hidden", "context", "text", "caption"))), "")
    argument = "" if text == "encoder_hidden_states" else f', argument="{text}"'
    return [*before, f'STREAMS = with_text({rule}, "{name}", first={bool(found.text_first)}{argument})']


def _latents(found: Explanation, guess: Guess, name: str) -> tuple[list[str], str]:
    """Lines before, and the expression of the rule that tells the grid."""
    if found.config.get("patch_size") is not None:
        deep = next((key for key in ("patch_size_t", "patch_size_temporal") if key in found.config), "")
        more = f', "{deep}"' if deep else ""
        return [], f'latent_grid("{name}", "{guess.axes}", "{guess.sample}", "patch_size"{more})'
    if found.patch == (1, 1, 1):
        return [], f'latent_grid("{name}", "{guess.axes}", "{guess.sample}", patch="")'
    sizes = [f'sizes["{axis}"] // {step}' for axis, step in zip("THW", found.patch, strict=True)]
    if "T" not in guess.axes:
        sizes[0] = "1"
    return [
        "def grid_of(model, args):",
        f'    """(T, H, W) tokens; CHECK: the configuration does not say that {found.patch} latents make a token."""',
        f'    sizes = dict(zip("{guess.axes}", shape(args, "{guess.sample}", {len(guess.axes)}, "{name}")))',
        f"    return {', '.join(sizes)}",
        "",
        "",
    ], "grid_of"


def _site_rule(group: Attended) -> str:
    keys = ', keys=("text",)' if group.role == "cross" else ""
    note = f"  # {counted(group.modules, 'module')}: {group.why}"
    some = ", some_calls=True" if ";" in group.why else ""
    return f'SiteRule(r"{group.pattern}", "{group.role}"{keys}{some}),{note}'


def _reads(guess: Guess | None, joint: bool) -> str:
    if guess is None:
        return '("hidden_states",)'
    names = [guess.sample]
    if joint or "img_ids" in guess.args:
        names += [key for key in guess.args if key in ("encoder_hidden_states", "context", "img_ids")]
    return f"({', '.join(repr(name) for name in names)},)".replace("'", '"')


def _clock(guess: Guess | None) -> str:
    return next(
        (name for name in CLOCKS if guess is not None and name in guess.args), "timestep" if guess is None else ""
    )


def _order(served: list[Attended]) -> str:
    heads = list(dict.fromkeys(re.split(r"\\?\.", group.pattern)[0] for group in served))
    return f"({', '.join(repr(head) for head in heads)},)".replace("'", '"') if heads else "()"


def _grid_words(found: Explanation) -> str:
    if found.guess is None or found.grid is None:
        return "CHECK"
    if found.guess.axes == "BNC":
        return f"CHECK: {found.guess.sample} (B, N, C), tokens already"
    axes = ", ".join("F" if axis == "T" else axis for axis in found.guess.axes)
    return f"{found.guess.sample} ({axes}) divided by {'patch_size' if found.config.get('patch_size') else found.patch}"


def _text(found: Explanation, joint: bool) -> str:
    return "apart" if not joint else "first" if found.text_first else "last"


def _text_check(found: Explanation, joint: bool) -> str:
    return "  # CHECK: text was not seen being joined; first or last?" if joint and found.text_first is None else ""


def _names(served: list[Attended]) -> list[str]:
    lines = []
    attributes = {group.heads_attribute for group in served}
    if attributes and attributes != {"heads"}:
        told = next(iter(attributes)) if len(attributes) == 1 else ""
        lines.append(
            f'    heads_attribute="{told or "heads"}",' + ("" if told else "  # CHECK: a call tells the heads")
        )
    projections = {group.projections for group in served}
    if projections and projections != {("to_q", "to_k", "to_v")}:
        layers = next(iter(projections)) if len(projections) == 1 else ()
        names = layers or ("to_q", "to_k", "to_v")
        text = f"({', '.join(repr(name) for name in names)})".replace("'", '"')
        lines.append(f"    projection_names={text}," + ("" if layers else "  # CHECK: fused or under other names"))
    return lines
