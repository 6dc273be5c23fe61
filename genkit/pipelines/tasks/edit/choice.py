"""Which method edits, and the values of what was left open."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError
from genkit.families.prompts import KNOWN, readings_of
from genkit.pipelines.called import check_called
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.edit.settings import (
    AUTO,
    FLOWEDIT,
    FREE,
    IMG2IMG,
    INFEDIT,
    NONE,
    P2P,
    PAIRED,
    VIMAEDIT,
    EditSettings,
)

if TYPE_CHECKING:
    from genkit.control.rules import Rule
    from genkit.pipelines.model import Model


#: The method where nobody says. Of flow models too: without control of attention, as FlowEdit, things are drawn at
#: another place or on another way (toy-dit, 30 cases, one setting for all: 97 % of the colours come out right, 50 % by
#: FlowEdit; colours of toy-video: 8 of 8 at their places against 4 of 8).
USUAL = INFEDIT
#: Kinds of change that another method reaches more often with flow models: kept attention holds the old outline. 50
#: cases of toy-dit: the shape is reached in 86 % against 70 % (paired: 16 ± 7 points more); with the rest kept too,
#: 72 ± 6 % are right against 66 ± 6 %. 30 clips of toy-video: 73 ± 8 % against 57 ± 9 (paired: 17 ± 8 points more),
#: with the shape by forced choice 90 against 60 (30 ± 10 more), at 37 dB of what stays against 34.
_FLOW_OTHERS = {"shape": (FLOWEDIT, "kept attention holds the old outline")}
#: Settings that only methods with control of attention have: who gives one has chosen such a method.
_CONTROLS = ("keep", "keep_maps", "words", "source_words", "keep_words", "new_words", "settle")
#: Values that are the methods' own where nothing is given.
_PLAIN: dict[str, Any] = {
    "words": (NONE,), "source_words": (NONE,), "new_words": PAIRED, "keep_words": (), "settle": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Usual:
    """Values of a method where nobody says.

    Args:
        steps, guidance_scale, source_guidance_scale, strength, keep, keep_maps, new_words, keep_words, settle, words,
            source_words: as the settings of these names; None where a method has no such setting.
    """

    steps: int
    guidance_scale: float
    source_guidance_scale: float | None = None
    strength: float | None = None
    keep: float | None = None
    keep_maps: float | None = None
    new_words: str | None = None
    keep_words: tuple[str, ...] | None = None
    settle: float | None = None
    words: tuple[str, ...] = (NONE,)
    source_words: tuple[str, ...] | None = None


_DIFFUSION = {
    INFEDIT: Usual(15, 2.0, 1.0, 1.0, 0.7, 0.7, PAIRED, (), 0.0, source_words=(NONE,)),
    P2P: Usual(50, 7.5, 1.0, None, 0.4, 0.8),
    IMG2IMG: Usual(50, 7.5, None, 0.7),
    VIMAEDIT: Usual(50, 7.5, 1.0, None, 0.6, words=(AUTO,)),
}
_FLOW = {
    FLOWEDIT: Usual(28, 5.5, 1.5, 24 / 28),
    INFEDIT: Usual(12, 3.0, 1.0, 1.0, 0.7, 0.7, PAIRED, (), 0.0, source_words=(NONE,)),
    P2P: Usual(28, 3.5, 1.0, None, 0.4, 0.8),
    IMG2IMG: Usual(28, 3.5, None, 0.7),
    VIMAEDIT: Usual(28, 3.5, 1.0, None, 0.6, words=(AUTO,)),
}
#: Shares of the steps, which presets set for every method that has them.
_SHARES = ("keep", "keep_maps")
#: What kinds of change set. InfEdit's authors say 1, 0.9, 0.3, 0, 0, 0 for both shares. On five cases a kind of the toy
#: world things stay in their places better, and as many edits come out right, when self-attention follows the source
#: and the maps are free; so it is here for all kinds but the first two and what goes: there kept maps and free
#: self-attention came out right in nine of nine cases, the other way round in one of four of them. What is added needs
#: more guidance and its own self-attention. Another background keeps attention throughout, but for the words that are
#: new: with their maps free and the things named by --keep-words, four of seven tuning cases came out right that were
#: wrong with 0.6 and 0 (things drawn at other places), and all three that were right stayed so. Maps that are kept to
#: the end leave shadows of the old background in clips of toy-video, and its colour in pictures of toy-image (of 40
#: tuning cases 30 came out right, and 34 with this share); without any things go another way.
_PRESETS: dict[str, dict[str, Any]] = {
    "colour": {"keep": 1.0, "keep_maps": 1.0},
    "material": {"keep": 0.9, "keep_maps": 0.9},
    "shape": {"keep": 0.6, "keep_maps": 0.0},
    "background": {"keep": 1.0, "keep_maps": 0.65, "new_words": FREE},
    "add": {"keep": 0.0, "keep_maps": 0.0, "guidance_scale": 3.0},
    "remove": {"keep": 0.0, "keep_maps": 0.8, "source_words": (AUTO,)},
}


def method_of(settings: EditSettings, model: Model) -> tuple[str, str | None]:
    """The method, and what is told of the choice where it is not the usual one and nobody named it."""
    if settings.method is not None:
        return settings.method, None
    better = _FLOW_OTHERS.get(settings.preset or "") if model.flow else None
    if better is None:
        return USUAL, None
    method, because = better
    for name in _CONTROLS:
        if settings.asked(name) and getattr(settings, name) not in (None, (), (NONE,)):
            return USUAL, (
                f"the method is {USUAL} because of {flag(name)}; on flow models such as {model.name} {method} "
                f"reaches --preset {settings.preset} more often, and has no such setting"
            )
    return method, (
        f"the method is {method}: on flow models such as {model.name} it reaches --preset {settings.preset} more often "
        f"than {USUAL} ({because}), at about twice the time; pictures keep the rest less closely; --method {USUAL} "
        f"takes the other"
    )


def choose(settings: EditSettings, model: Model) -> tuple[EditSettings, tuple[str, ...]]:
    """Settings with method and values filled in, and what is told of the choice.

    Raises:
        UsageError: options that the chosen method does not have, a strength that leaves no step.
        UnsupportedError: a model that genkit cannot drive, a method that the model does not fit.
    """
    check_called(model, "edit")
    flow = model.flow
    table = _FLOW if flow else _DIFFUSION
    method, told = method_of(settings, model)
    if told is not None and method != USUAL:  # that is all the preset does: the method does not read it
        settings = settings.replace(preset=None)
    if method not in table:
        raise UnsupportedError(
            f"--method {method} takes flow models (Flux, Stable Diffusion 3, Wan), and {model.name} is none; take "
            f"{', '.join(table)}"
        )
    if method == VIMAEDIT and model.kind is not IMAGE:
        raise UnsupportedError(
            f"--method {method} takes models of pictures, and {model.name} makes videos; take {INFEDIT}"
        )
    settings = settings.replace(method=method)
    usual = table[method]
    advised = _advised(settings.preset, method, flow)
    changes: dict[str, Any] = {}
    for name in (field.name for field in fields(Usual)):
        own, given = getattr(usual, name), getattr(settings, name)
        if own is None and given not in (None, ()):
            raise UsageError(f"--{name.replace('_', '-')}: {method} has no such setting; leave it out")
        if own is not None and given in (None, ()):
            changes[name] = advised.get(name, own)
    if settings.keep is not None and settings.keep_maps is None and "keep_maps" in changes and method == INFEDIT:
        changes["keep_maps"] = settings.keep
    settings = settings.replace(**{name: value for name, value in changes.items() if value != _PLAIN.get(name)})
    if settings.source_prompt is None and method != IMG2IMG:
        raise UsageError(
            f"--source-prompt: {method} compares what the picture shows with what it shall show; say in a few words "
            'what it shows ("" where that is unknown), or take --method img2img'
        )
    check_words_found(settings, model)
    if settings.strength is not None:
        from genkit.editing.shared.pipeline import first_step

        assert settings.steps is not None, "every method has a usual number"
        first_step(settings.steps, settings.strength)  # UsageError where no step is left
    if settings.keep and method in (INFEDIT, P2P, VIMAEDIT):
        settings.check_free(f"--method {method}", f", or take --method {FLOWEDIT if flow else IMG2IMG}")
    return settings, () if told is None else (told,)


def check_words_found(settings: EditSettings, model: Model) -> None:
    """Refuse a method that looks for the prompts' words among text tokens of which nobody knows whose they are.

    Raises:
        UnsupportedError: with the methods that the model can take.
    """
    method = settings.method
    if method in (FLOWEDIT, IMG2IMG) or readings_of(model.class_name) is not None:
        return
    if method == INFEDIT and not rules_of(settings):
        return
    others = [name for name in (_FLOW if model.flow else _DIFFUSION) if name in (FLOWEDIT, IMG2IMG)]
    free = f", {INFEDIT} with --keep 0 --keep-maps 0" if method == INFEDIT else ""
    raise UnsupportedError(
        f"--method {method} looks for the words of both prompts among the text tokens, and genkit does not know how "
        f"{model.class_name} reads prompts (known: names that begin with {', '.join(KNOWN)}); take --method "
        f"{' or '.join(others)}{free}"
    )


def rules_of(settings: EditSettings) -> list[Rule]:
    """Rules that reach the layers that the chosen method controls, whatever it does there."""
    from genkit.control import ReadMaps, Take

    self_attention = bool(settings.keep) or settings.method == VIMAEDIT
    told = (settings.words, settings.source_words)
    words = any(each not in ((), (NONE,)) for each in told) or bool(settings.keep_words)
    maps = bool(settings.keep_maps) or settings.method == VIMAEDIT or words
    found: list[Rule] = [Take("qk", of="source", into="target")] if self_attention else []
    return [*found, ReadMaps(name="words", of="target")] if maps else found


def _advised(preset: str | None, method: str, flow: bool) -> dict[str, Any]:
    """What a preset sets of a method: shares of the steps for all that have them, the rest for InfEdit; guidance
    for diffusion models alone, whose scale it is in."""
    found = _PRESETS[preset] if preset is not None else {}
    if method == INFEDIT:
        return {name: found[name] for name in found if not (flow and name == "guidance_scale")}
    return {name: found[name] for name in found if name in _SHARES}


def usual_values(method: str, flow: bool, preset: str | None = None) -> dict[str, Any]:
    """What a method runs with where nobody says, by name of the setting; without those that it does not have.

    Args:
        method: of ``--method``. flow: whether the model is a flow model. preset: of ``--preset``.
    """
    own = vars((_FLOW if flow else _DIFFUSION)[method])
    advised = _advised(preset, method, flow)
    found = {name: advised.get(name, value) for name, value in own.items() if value is not None}
    return {name: value for name, value in found.items() if value != _PLAIN.get(name)}
