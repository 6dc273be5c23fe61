"""What a visitor reads when something goes wrong."""

from __future__ import annotations

import re

from genkit.errors import GenkitError, escaped, shortened

#: Characters of a message.
LONGEST = 400
_FLAG = re.compile(r"--([a-z][a-z-]*)(?![\w-])")
#: What the page calls settings by.
LABELS = {
    "prompt": "Prompt", "negative-prompt": "What to avoid", "steps": "Steps", "guidance-scale": "Guidance",
    "attention": "Attention", "attention-args": "Settings of the method", "schedule": "Where it applies",
    "lora": "LoRA", "model": "Model", "image": "Picture", "mask": "Mask", "style": "Style picture",
    "num-frames": "Frames", "source-prompt": "What the picture shows", "output": "Output",
}  # fmt: skip


def label(name: str) -> str:
    """What the page calls a setting: ``guidance_scale`` -> ``Guidance``."""
    plain = name.replace("_", "-")
    return LABELS.get(plain, plain.replace("-", " ").capitalize())


def for_visitor(text: str) -> str:
    """A message with the page's names for settings in place of flags, short enough for a box."""
    plain = _FLAG.sub(lambda found: f"“{label(found[1])}”", escaped(text))
    return shortened(plain[:1].upper() + plain[1:], LONGEST)


def told(error: BaseException) -> str:
    """An error as a visitor reads it: what genkit says on purpose, or that something broke, without inner workings."""
    if isinstance(error, GenkitError):
        return for_visitor(str(error))
    return f"Something broke while this was made ({type(error).__name__}). The server's log says more."
