"""One door for instructions: what is said in free words becomes settings, which the usual checks then judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import GenkitError, UsageError, explain, shown
from genkit.pipelines.instruction.files import files_of
from genkit.pipelines.instruction.fill import Answer, Unusable
from genkit.pipelines.instruction.rules import ByRules, by_rules, prompt_written
from genkit.pipelines.instruction.schema import Instruction
from genkit.pipelines.instruction.settings import InstructionSettings
from genkit.pipelines.kinds import AUDIO_VIDEO
from genkit.pipelines.request import flag

if TYPE_CHECKING:
    from genkit.pipelines.model import Model

RULES = "the rules"
#: Shipped model of video and sound.
WITH_SOUND = "toy-av"
#: Settings that an instruction can fill, in the order in which they are told.
_FILLED = (
    "model", "prompt", "shots", "image", "last_image", "keyframe", "subject", "source_video", "control", "mask",
    "image_prompt", "audio", "video", "boxes", "num_frames", "fps", "width", "height", "seed", "fast", "offload",
    "vae_tiling",
)  # fmt: skip
#: How the checks name what has no name of an option there.
_SAID = {"--prompt": ("the prompt",), "--shots": ("shot",)}


@dataclass(frozen=True)
class Reading:
    """What an instruction was read as.

    Args:
        instruction: as data.
        filled: the settings of ``genkit generate`` that it stands for, by name; written ones are not among them.
        written: names of the settings that somebody wrote and the instruction could have said.
        by: who read it: the rules, or a language model by name.
        told: what the user should know, one line each.
        settings: all settings, those of the instruction filled in.
        taken: words of the instruction that the rules understood and took out of the prompt.
    """

    instruction: Instruction
    filled: dict[str, Any]
    written: tuple[str, ...]
    by: str
    told: tuple[str, ...]
    settings: Any
    taken: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without the settings that it does not concern."""
        filled = {name: list(value) if isinstance(value, tuple) else value for name, value in self.filled.items()}
        return {
            "by": self.by, "instruction": self.instruction.to_dict(), "filled": filled, "written": list(self.written),
            "taken": list(self.taken),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For people, one a setting."""
        told = [f"read from --instruction by {self.by}: {each}" for each in self._options()]
        told += [f"taken out of the prompt, for it was understood: {shown(each)}" for each in self.taken]
        return [*told, *(f"written, so not asked for: {flag(name)}" for name in self.written)]

    def summary(self) -> str:
        """In one line."""
        return f"--instruction was read by {self.by}: {', '.join(self._options()) or 'nothing was left open'}"

    def _options(self) -> list[str]:
        found = []
        for name, value in self.filled.items():
            for each in value if isinstance(value, tuple) else (value,):
                found.append(flag(name) if each is True else f"{flag(name)} {_plain(each)}")
        return found

    def about(self, error: GenkitError) -> GenkitError:
        """An error of the checks that concerns what was filled, saying where that comes from."""
        said = f"{_spaced(str(error))} "
        options = {each: each.partition(" ")[0] for each in self._options()}
        concerned = [each for each, name in options.items() if any(f"{word} " in said for word in _words(name))]
        model = f"--model {self.filled.get('model')}"
        if "model" in self.filled and model not in concerned:  # it decides what all others may be
            concerned.append(model)
        if not concerned:
            return error
        return type(error)(
            f"{error} (read from --instruction by {self.by}: {', '.join(concerned)}; an option wins over it)"
        )


def read_instruction(
    text: str,
    files: Sequence[str | Path] | str | Path = (),
    *,
    language_model: str | Path | None = None,
    **settings: Any,
) -> Reading:
    """Read what is wanted in free words as settings of ``genkit generate``.

    Args:
        text: such as "make the girl in photo.png wave, two seconds, end on last.jpg". Files that it names and that
            exist are found; no others are ever used.
        files: further ones that it is about, or a single one.
        language_model: folder of a causal language model of transformers, or its hub id where the cache holds it;
            nothing is downloaded. It chooses among the values that a field can have, by their likelihood, and writes
            prompts alone; it is out of memory when this returns. Default: rules, by which phrases about files,
            lengths, sizes and seeds become settings and all other words the prompt.
        settings: what is decided already, by the names of the command's options, such as ``model="toy-av"``; they win.

    Returns:
        The instruction as data (``instruction``), as settings (``filled``), and what to tell of it.

    Raises:
        UsageError: a setting or a combination that does not exist. ArtifactError: a file that is missing or damaged, or
        a folder that is no language model.
    """
    from genkit.pipelines.settings import GenerateSettings

    if not isinstance(text, str):
        raise UsageError(explain("text of read_instruction", text, "a text that says what is wanted"))
    own = {"instruction": "text", "file": "files", "instruction_model": "language_model"}
    twice = next((name for name in own if name in settings), None)
    if twice is not None:
        raise UsageError(f"read_instruction: got {twice} among the settings; give it as the argument {own[twice]}")
    named = [files] if isinstance(files, str | Path) else files
    asked = {"instruction": text, "file": tuple(map(str, named)), **settings}
    asked["instruction_model"] = None if language_model is None else str(language_model)
    return read(GenerateSettings.from_mappings(("read_instruction", asked)))


def through_words(settings: Any) -> tuple[Any, Reading | None]:
    """Settings with their instruction in the form of other settings, and how it was read; None without one."""
    if not isinstance(settings, InstructionSettings) or settings.instruction is None:
        return settings, None
    reading = read(settings)
    return reading.settings, reading


def read(settings: Any) -> Reading:
    """How the instruction of settings is read; see :func:`read_instruction`."""
    files = files_of(settings)
    by, told = RULES, list[str]()
    if settings.instruction_model is None:
        read_by = by_rules(settings, files)
    else:
        read_by, by, told = _by_model(settings, files)
    made, told = read_by.instruction, [*told, *read_by.told]
    filled, more = _as_settings(made, settings)
    filled = {name: filled[name] for name in _FILLED if name in filled}
    left = [name for name in filled if settings.asked(name)]
    filled = {name: value for name, value in filled.items() if name not in left}
    more += [f"{flag(name)} was written and wins over --instruction" for name in left]
    written = tuple(name for name in (*_FILLED, "storyboard") if settings.asked(name))
    reading = Reading(made, filled, written, by, (), settings, read_by.taken)
    try:
        reading = replace(reading, settings=_merged(settings, filled))
    except GenkitError as error:  # settings that do not go together
        told_of = reading.about(error)
        if told_of is error:
            raise
        raise told_of from error
    return replace(reading, told=(*told, reading.summary(), *more))


def _by_model(settings: Any, files: tuple) -> tuple[ByRules, str, list[str]]:
    """What a language model makes of it; the rules where that means nothing."""
    from genkit.pipelines.instruction import language_model

    name = settings.instruction_model
    with language_model.language_model(name, settings.device) as reader:
        try:
            return ByRules(Answer(reader, settings, files).made()), name, []
        except Unusable as error:
            reason = f"{name} gave no usable answer ({error})"
    try:
        return by_rules(settings, files), RULES, [f"{reason}; the rules read --instruction"]
    except UsageError as error:
        raise UsageError(f"{reason}, and by the rules: {error}") from error


def _merged(settings: Any, filled: dict[str, Any]) -> Any:
    """The settings with what was filled, as if it had been written."""
    kind = type(settings)
    names = [name for name in kind.field_names() if name not in InstructionSettings.field_names()]
    usual = {name: kind.__dataclass_fields__[name].default for name in names}
    before = {name: getattr(settings, name) for name in names}
    before = {name: value for name, value in before.items() if value != usual[name] or settings.asked(name)}
    made = kind(**kind.merge(before, filled))
    asked = {name for name in names if settings.asked(name) and name in before}
    made._ask(asked | set(filled))
    made.check()
    return made


def _as_settings(made: Instruction, settings: Any) -> tuple[dict[str, Any], list[str]]:
    """What an instruction stands for, and what to tell of it."""
    found: dict[str, Any] = made.files()
    told: list[str] = []
    if made.sound:
        _add_sound(found, settings, told)
    if made.fps is not None:
        found["fps"] = f"{made.fps:g}"
    if made.seed is not None:
        found["seed"] = made.seed
    if made.width is not None:
        found["width"], found["height"] = made.width, made.height
    if made.frames is not None:
        found["num_frames"] = made.frames
    prompts = made.prompts
    if made.seconds is not None or made.durations:
        lengths = _frames(made, _model(found.get("model"), settings), settings, found)
        if made.durations:
            prompts = tuple(f"{text}@{count}" for text, count in zip(prompts, lengths, strict=True))
        else:
            found["num_frames"] = lengths[0]
    if prompts and not prompt_written(settings):
        found["prompt" if len(prompts) == 1 else "shots"] = prompts[0] if len(prompts) == 1 else prompts
    if made.budget is not None:
        _add_budget(made.budget, found, settings, told)
    return found, told


def _model(name: str | None, settings: Any) -> Model:
    from genkit.models import locate
    from genkit.pipelines.model import Model

    name = name or settings.model
    return Model.at(locate(name, files=True), name, settings.parts_from)


def _frames(made: Instruction, model: Model, settings: Any, found: dict[str, Any]) -> list[int]:
    """Seconds as the nearest numbers of frames that the model makes; of several shots their ends are rounded."""
    fps = Fraction(found.get("fps") or settings.fps or model.sidecar.defaults.get("fps") or model.fps)
    each = 1 if model.rule is None else model.rule.frames_multiple
    counts, before, end = [], 0, Fraction(0)
    for seconds in made.durations or (made.seconds,):
        end += Fraction(str(seconds))
        steps = round((end * fps - 1) / each)
        last = max(1 + each * max(0, steps), before + each if before else 1)
        counts.append(last - before)
        before = last
    return counts


def _add_sound(found: dict[str, Any], settings: Any, told: list[str]) -> None:
    """A model that makes sound, where none was named."""
    from genkit.models import shipped

    if _model(None, settings).kind is AUDIO_VIDEO:
        return
    if settings.given("model"):
        told.append(f"sound is wanted and {settings.model} makes none; --model was written and stays")
    elif WITH_SOUND in shipped():
        found["model"] = WITH_SOUND


def _add_budget(budget: str, found: dict[str, Any], settings: Any, told: list[str]) -> None:
    """What a wish for speed, quality or little memory comes to on this model and machine."""
    from genkit.pipelines.few_steps import fast_file
    from genkit.pipelines.load import resolve_device

    model = _model(found.get("model"), settings)
    if budget == "speed":
        own = next((name for name in ("steps", "scheduler", "lora", "guidance_scale") if settings.asked(name)), None)
        if own is not None:
            told.append(f"speed is wanted; {flag(own)} was written and stays, so --fast is left out")
        elif fast_file(model.folder).is_file():
            found["fast"] = True
        else:
            told.append(f"speed is wanted; {model.name} has no few-step LoRA and runs as usual")
    elif budget == "quality":
        told.append("quality is wanted; nothing is changed for it, steps and attention are the model's or as written")
    else:
        if resolve_device(settings.device).type == "cpu":
            told.append("little memory is wanted; on a CPU keeping parts away saves nothing")
        else:
            found["offload"] = "model"
        if hasattr(model.part_class("vae"), "enable_tiling"):
            found["vae_tiling"] = True


def _words(option: str) -> tuple[str, ...]:
    """What checks call an option: a prompt is one in words too."""
    return (option, *_SAID.get(option, ()))


def _plain(value: Any) -> str:
    return shown(value) if isinstance(value, str) and (" " in value or not value) else str(value)


def _spaced(text: str) -> str:
    """A text with blanks for the marks that may stand behind an option."""
    return "".join(each if each.isalnum() or each in "-_" else " " for each in text)
