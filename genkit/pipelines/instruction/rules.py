"""An instruction read without a language model: phrases that are understood become settings, the others the prompt.

Files whose role nothing tells take one by kind and order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError
from genkit.pipelines.instruction.files import MARKS as QUOTES
from genkit.pipelines.instruction.files import Found, mentions, quotations, same
from genkit.pipelines.instruction.lengths import Lengths
from genkit.pipelines.instruction.masked import Masked
from genkit.pipelines.instruction.roles import Roles
from genkit.pipelines.instruction.schema import CLIP, PICTURE, ROLES, SOUND, TRACK, Input, Instruction

#: Roles that files of a kind take in order.
_ORDER = {PICTURE: ("first_frame", "last_frame"), CLIP: ("source",), SOUND: ("sound",), TRACK: ("boxes",)}
#: Words that say nothing of what is seen.
_EMPTY = frozenset(
    "please can could you i we want need would like to a an the make create generate produce render give me show do "
    "let have it its video videos clip clips animation movie film shot loop sequence gif picture image photo animate "
    "bring life continue extend use take using with of from and then in on for by as that which is be should this "
    "so".split()
)  # fmt: skip


@dataclass(frozen=True)
class ByRules:
    """What the rules make of an instruction.

    Args:
        instruction: as data.
        taken: the words that were understood and are no part of the prompt.
        told: what the user should know, one line each.
    """

    instruction: Instruction
    taken: tuple[str, ...] = ()
    told: tuple[str, ...] = ()


def by_rules(settings: Any, files: tuple[Found, ...]) -> ByRules:
    """The instruction as the rules have it.

    Args:
        settings: what is written stays and is not said again.
        files: without a role yet.

    Raises:
        UsageError: more files of a kind than there are roles, or a role that a kind of file cannot have.
    """
    text = (settings.instruction or "").strip()
    if text[:1] + text[-1:] in QUOTES and not set(text[1:-1]) & set(text[:1] + text[-1:]):
        text = text[1:-1].strip() or text  # all of it in quotation marks is no quotation
    words = Masked.of(text, mentions(settings.replace(instruction=text)), quotations(text))
    if words is None:
        return ByRules(Instruction(_prompts(settings, text), inputs=_inputs(settings, files, {})))
    roles, lengths = Roles(words).read(), Lengths(words).read()
    taken = () if prompt_written(settings) else tuple(words.taken)
    inputs = _inputs(settings, files, roles.said())
    sentence, told = words.sentence(), [*lengths.told]
    if not prompt_written(settings):
        if not says_something(sentence):
            sentence, taken = text, ()
            told.append(
                "--instruction says nothing of what is seen beside files, lengths and the like; its words stay the "
                'prompt as they are: add what happens, such as "the girl waves", or give --prompt'
            )
        elif roles.kept:
            told.append(
                f"{', '.join(roles.kept)}: the rules do not understand the words around it, which stay the prompt"
            )
    return ByRules(Instruction(_prompts(settings, sentence), inputs=inputs, **lengths.values), taken, tuple(told))


def _prompts(settings: Any, text: str) -> tuple[str, ...]:
    return () if prompt_written(settings) else (" ".join(text.split()),)


def _inputs(
    settings: Any, files: tuple[Found, ...], said: dict[str, list[tuple[str, str, int | None]]]
) -> tuple[Input, ...]:
    """The files in their roles: those that are said, then by kind and order. ``said``: path -> (kind, role, frame)."""
    inputs = [Input(path, kind, role, frame) for path, each in said.items() for kind, role, frame in each]
    tracked = settings.asked("boxes") or any(each.kind == TRACK for each in files)
    order = _ORDER | ({PICTURE: ("subject",)} if tracked else {})  # what goes along boxes has no first frame
    for each in files:
        if any(same(each.path, path) for path in said):
            continue
        for role in order[each.kind]:
            if role in free_roles(settings, each.kind, inputs):
                inputs.append(Input(each.path, each.kind, role))
                break
        else:
            raise UsageError(
                f"{each.name}: the rules have no role left for this {each.kind}; say it by an option such as --image, "
                "--last-image, --keyframe or --subject FILE"
            )
    order_of = [each.path for each in files]
    return tuple(sorted(inputs, key=lambda each: order_of.index(each.path) if each.path in order_of else len(order_of)))


def says_something(sentence: str) -> bool:
    """Whether a sentence has words for what is seen, and not only for what is to be done."""
    return any(word.lower() not in _EMPTY for word in re.findall(r"\w+", sentence))


def free_roles(settings: Any, kind: str, before: list[Input]) -> list[str]:
    """The roles that a further file of a kind can have beside what is written and the files before it."""
    taken = {each.role for each in before}
    found = []
    for role, facts in ROLES.items():
        name = facts.settings.get(kind)
        if name is None or (role in taken and not facts.several):
            continue
        if settings.asked(name) and not facts.several:
            continue
        if role == "style" and settings.ip_adapter is None:
            continue
        if role in ("source", "first_frame") and taken & {"source", "first_frame"}:
            continue
        if role == "source" and kind == PICTURE and not settings.given("model"):
            continue  # the shipped model of videos animates pictures
        if role == "first_frame" and settings.asked("source_video"):
            continue
        if role == "source" and kind == CLIP and settings.asked("image"):
            continue
        found.append(role)
    return found


def prompt_written(settings: Any) -> bool:
    """Whether somebody wrote what is seen."""
    return any(settings.asked(name) for name in ("prompt", "shots", "storyboard"))
