"""The page of all denoiser classes of Diffusers, from the records themselves: python scripts/model_classes_page.py

It writes docs/model-classes.md; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

import genkit
from genkit.families import FamilyInfo
from genkit.families.out_of_scope import OUT_OF_SCOPE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "model-classes.md"
HEAD = """# Model classes

Every denoiser class of Diffusers 0.42.1 (transformers and UNets) is in one of these tables: it can be patched, with
what is told beside it, or it cannot, with the reason. A test walks through Diffusers and fails for a class that is in
none; every class is tested on a tiny model of its own. `genkit families NAME` tells more of one family, `genkit
methods --matrix` which method serves which kind of attention.

What a class has beside the kinds of attention named here keeps the model's own computation: text encoders inside the
denoiser, attention poolers, linear attention. **Attention**: `self` among the tokens of the picture or clip, `joint`
together with text, `cross` to text or pictures, `spatial` within frames and `temporal` along them, the rest in models
with sound. `roles=` of `genkit.patch` chooses among them; `self` includes `spatial` and `temporal`.
"""
TITLES = {"video": "Video", "image": "Pictures", "sound": "Sound"}
TAIL = """
## What single calls are declined for

A call that no method can serve exactly runs the model's own attention, and `report()` counts it with the reason:

- The mask hides other keys from other queries of the picture itself: blocks of frames that see only earlier ones
  (SkyReels-V2 with `num_frame_per_block`), sliding bands (ACE-Step). Methods with a plan (`neighborhood`, `radial`,
  ...) serve such calls over the pairs that both show; the others decline, and so does a method on some heads only.
  Where only text sees other keys than the picture does (causal text, padded text), every method serves the picture's
  part and the text's part is computed by the model.
- The mask hides places of the latents (padding in a batch): methods that choose among means of keys would read them.
  Methods with a plan (`neighborhood`, `radial`, ...) and `linear_attention` serve such calls, unless the window of some
  query holds padding alone.
- The model's own block mask of FlexAttention (Kandinsky 5 with `nabla`, Wan-Animate 2, AnyFlow-FAR while it fills its
  cache).
- A causal call of the text among itself (Cosmos 3).
- Rows of one batch whose tokens are laid out differently: split the batch.

A mask of numbers that are added to the scores (0 and 1 for text padding, as some pipelines make them) hides nothing;
methods compute it exactly, with eight more numbers per head.
"""


def page() -> str:
    """The page's text."""
    found = sorted(genkit.families(), key=lambda family: family.name.lower())
    lines = [HEAD]
    for kind, title in TITLES.items():
        rows = [row(family) for family in found if family.kind == kind]
        if rows:
            lines += [f"## {title}", "", "| family | classes | attention | what to know |", "| --- | --- | --- | --- |"]
            lines += [*rows, ""]
    lines += ["## Cannot be patched", "", "| class | because |", "| --- | --- |"]
    lines += [f"| `{name}` | {reason} |" for name, reason in sorted(OUT_OF_SCOPE.items())]
    return "\n".join(lines) + "\n" + TAIL


def row(family: FamilyInfo) -> str:
    """One family."""
    classes = ", ".join(f"`{name}`" for name in family.classes)
    unserved = " ".join(f"No {role} attention: {reason}." for role, reason in family.unserved.items())
    said = f"{unserved} {family.notes}".strip().replace("|", r"\\|")
    return f"| {family.name} | {classes} | {', '.join(family.roles)} | {said} |"


if __name__ == "__main__":
    PAGE.write_text(page())
