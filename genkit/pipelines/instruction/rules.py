"""An instruction read without a language model: its words are the prompt, files take roles by kind and order."""

from __future__ import annotations

from typing import Any

from genkit.errors import UsageError
from genkit.pipelines.instruction.files import Found
from genkit.pipelines.instruction.schema import CLIP, PICTURE, ROLES, SOUND, TRACK, Input, Instruction

#: Roles that files of a kind take in order.
_ORDER = {PICTURE: ("first_frame", "last_frame"), CLIP: ("source",), SOUND: ("sound",), TRACK: ("boxes",)}


def by_rules(settings: Any, files: tuple[Found, ...]) -> Instruction:
    """The instruction as the rules have it.

    Args:
        settings: what is written stays and is not said again.
        files: without a role yet.

    Raises:
        UsageError: more files of a kind than there are roles.
    """
    inputs: list[Input] = []
    tracked = settings.asked("boxes") or any(each.kind == TRACK for each in files)
    order = _ORDER | ({PICTURE: ("subject",)} if tracked else {})  # what goes along boxes has no first frame
    for each in files:
        for role in order[each.kind]:
            if role in free_roles(settings, each.kind, inputs):
                inputs.append(Input(each.path, each.kind, role))
                break
        else:
            raise UsageError(
                f"{each.name}: the rules have no role left for this {each.kind}; say it by an option such as --image, "
                "--last-image, --keyframe or --subject FILE"
            )
    prompts = () if prompt_written(settings) else (" ".join((settings.instruction or "").split()),)
    return Instruction(prompts, inputs=tuple(inputs))


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
