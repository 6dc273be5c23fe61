"""What a visitor reads when something goes wrong."""

from __future__ import annotations

import re

from genkit.errors import GenkitError, escaped, shortened

#: Characters of a message.
LONGEST = 400
#: Where values of the page come from, in messages.
ORIGIN = "the form"
_FIELD = re.compile(rf"^([a-z][a-z_]*) in {ORIGIN}")
#: Folders of the server's files begin so; where they lie is nobody's business.
FOLDER = "genkit-demo-"
_PLACE = re.compile(rf"/[^\s'\"]*{FOLDER}[^\s'\"]*/")
#: Names of files that the server gave, which say nothing to a visitor.
_NAMED = re.compile(r"\b(mask|picture|clip|image) genkit-[0-9a-f]{16}\.\w+")
_MADE = re.compile(r"genkit-[0-9a-f]{16}\.\w+")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?![\w-])")
#: Advice that no form can follow.
_NOT_HERE = re.compile(r", or add --truncate-prompt to drop the end")
#: What the page calls settings by.
LABELS = {
    "prompt": "Prompt", "negative-prompt": "What to avoid", "steps": "Steps", "guidance-scale": "Guidance",
    "attention": "Attention", "attention-args": "Settings of the method", "schedule": "Where it applies",
    "lora": "LoRA", "model": "Model", "image": "Picture", "mask": "Mask", "style": "Style picture",
    "num-frames": "Frames", "num-videos": "Variants", "source-prompt": "What the picture shows",
    "preset": "Kind of change", "subject": "Who appears", "scene": "Scenes", "box": "Where they are",
    "keep-maps": "Keep where words act", "words": "Change only where these words act",
    "keep-words": "Keep the picture where these words act", "new-words": "Where new words act",
    "keyword": "Words that name them", "resample": "Times each step is taken", "mask-grow": "Grow the mask",
    "mask-invert": "Swap inside and outside", "output": "Output",
}  # fmt: skip


def label(name: str) -> str:
    """What the page calls a setting: ``guidance_scale`` -> ``Guidance``."""
    plain = name.replace("_", "-")
    return LABELS.get(plain, plain.replace("-", " ").capitalize())


def for_visitor(text: str) -> str:
    """A message with the page's names for settings in place of flags, short enough for a box."""
    text = _MADE.sub("the file", _NAMED.sub(r"\1", _PLACE.sub("", _NOT_HERE.sub("", text))))
    plain = _FIELD.sub(lambda found: label(found[1]), escaped(text))
    plain = _FLAG.sub(lambda found: f"“{label(found[1])}”", plain)
    return shortened(plain[:1].upper() + plain[1:], LONGEST)


def told(error: BaseException) -> str:
    """An error as a visitor reads it: what genkit says on purpose, or that something broke, without inner workings."""
    if isinstance(error, GenkitError):
        return for_visitor(str(error))
    return f"Something broke while this was made ({type(error).__name__}). The server's log says more."
