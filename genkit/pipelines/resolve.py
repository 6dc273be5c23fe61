"""From settings to a request of objects: every text is read once, everything is checked, no weights are touched.

A task's ``resolve`` makes a :class:`Draft` of its settings, fills in what was left open, adds what the task itself
needs, and closes it to a :class:`Request`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import GenkitError, UnsupportedError, UsageError, counted, shown
from genkit.families.lookup import facts_of
from genkit.lora.files import parse_lora
from genkit.lora.load import Share, check_lora, match_loras
from genkit.lora.mixture.asked import Mixing
from genkit.models import locate
from genkit.pipelines import cleaning, guidance
from genkit.pipelines.attention import Attention
from genkit.pipelines.few_steps import FewSteps, fast_lora, few_steps_of
from genkit.pipelines.instruction.door import Reading, through_words
from genkit.pipelines.kinds import IMAGE, makes_nothing
from genkit.pipelines.load import check_offload, resolve_device, resolve_dtype
from genkit.pipelines.model import Model
from genkit.pipelines.outputs import check_format
from genkit.pipelines.parts import check_processors
from genkit.pipelines.prompts import Prompts, read_prompts, tokenizers_of
from genkit.pipelines.quantise import choose, folders_only
from genkit.pipelines.recipes import recipe_place
from genkit.pipelines.request import Settings, flag
from genkit.pipelines.schedulers import Sampler, find_sampler
from genkit.pipelines.settings import AttentionSettings, DrawSettings, LoadSettings, SizeSettings
from genkit.pipelines.shares import check_lora_asked, shares_of
from genkit.pipelines.single_file import SingleFile, find_files
from genkit.pipelines.single_file import fingerprints as digests
from genkit.pipelines.subject import through_door
from genkit.pipelines.task import Task, task_of
from genkit.pipelines.trained_attention import from_loras, remarks, taught_by
from genkit.pipelines.words import check_words

if TYPE_CHECKING:
    import torch

    from genkit.lora.files import Lora
    from genkit.lora.match import Matched


_NO_PROMPT = 'no prompt: give one, or "" for an unconditional run'


@dataclass(frozen=True)
class Request:
    """A request that passed every check that needs no weights.

    Args:
        settings: with open values filled in for this model; what outputs store.
        task: what kind of run it is.
        model: the model without its weights.
        device, dtype: where and in what the run computes.
        prompts: what the model will read, and what of it is cut or unknown.
        attention: method or recipe with its schedule; None for the model's own.
        loras: LoRA files with their strengths.
        shares: strengths by layer and step, one a LoRA file; empty without any.
        mixing: LoRAs that a router or masks mix token by token; None for none.
        inputs: what the task read beside the settings (a given sound, pictures, ...).
        fingerprints: digests of these inputs, for the record.
        steps: how many steps a schedule can name; None when only the pipeline knows.
        notes: what the user should know about the request, one line each.
        tokenizers: of the model, for further prompts.
        matches: the LoRA files matched with the model; see :meth:`take_matches`.
        frames: how many are made; None when only the pipeline knows, or for a picture.
        taught: words that LoRAs teach, in small letters: prompts may have them though no tokenizer knows them.
        few: what a LoRA for few steps asks of the run; None without one.
        sampler: that the user asks for; None for the model's own.
        single: files in place of the denoisers' own weights.
        added: parts that the run adds to the model (:class:`genkit.pipelines.tasks.inputs.parts.Added`); None for none.
        reading: how an instruction in free words was read; None without one.
    """

    settings: Any
    task: Task
    model: Model
    device: torch.device
    dtype: torch.dtype
    prompts: Prompts
    attention: Attention | None = None
    loras: tuple[Lora, ...] = ()
    inputs: Any = None
    fingerprints: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    notes: tuple[str, ...] = ()
    tokenizers: dict[str, Any] = field(default_factory=dict)
    matches: list[Matched] = field(default_factory=list)
    mixing: Mixing | None = None
    shares: tuple[Share, ...] = ()
    frames: int | None = None
    taught: frozenset[str] = frozenset()
    few: FewSteps | None = None
    sampler: Sampler | None = None
    added: Any = None
    single: tuple[SingleFile, ...] = ()
    reading: Reading | None = None

    def take_matches(self) -> list[Matched]:
        """The LoRA files as they were matched with the model: once, for the weights in them are not kept."""
        found = list(self.matches)
        self.matches.clear()
        return found

    def read(self, settings: Any) -> Prompts:
        """The prompts of a variation of the settings, as the model will read them."""
        if self.task.check is not None:
            self.task.check(settings)
        if settings is self.settings:
            return self.prompts
        return read_words(self.tokenizers, settings, self.model, self.attention, self.taught)


def resolve(settings: Settings) -> Request:
    """Check settings against the model as far as possible without reading weights, and fill in what was left open.

    A hub id is downloaded here if the cache does not hold it.

    Raises:
        GenkitError: whatever is wrong, in one line; see the settings' class, :func:`genkit.load`.
    """
    settings, reading = through_words(settings)
    try:
        settings, told = through_door(settings)
        request = task_of(settings).resolve(settings)
    except GenkitError as error:
        told_of = error if reading is None else reading.about(error)
        if told_of is error:
            raise
        raise told_of from error
    told = (*(() if reading is None else reading.told), *told)
    return replace(request, notes=(*told, *request.notes), reading=reading) if told else request


class Draft:
    """A request in the making.

    Args:
        given: the settings as the user gave them: those of generation, with other groups or without.
        inputs: arguments of the pipeline's call that the task gives beside them, such as ``image``.
        model: the model as the task runs it, such as with another pipeline class of the same parts; as its folder says
            when left out. The task then checks itself that nothing is missing.
    """

    #: What a LoRA for few steps asks of the run.
    few: FewSteps | None = None
    #: Files in place of the denoisers' own weights.
    single: tuple[SingleFile, ...] = ()

    def __init__(self, given: Any, inputs: tuple[str, ...] = (), model: Callable[[Model], Model] | None = None):
        self.task = task_of(given)
        self.notes: list[str] = []
        attends, loads = isinstance(given, AttentionSettings), isinstance(given, LoadSettings)
        self.named = tuple(parse_lora(text) for text in given.lora) if loads else ()
        #: Words that are no slips of the pen, in small letters.
        self.taught = taught_by(self.named)
        if attends:
            given, taken = from_loras(given, self.named)
            self.notes += [*taken, *remarks(given, self.named)]
        self.given = self.settings = given
        early = attends and not Attention.needs_folder(given)
        self.attention = Attention.of(given) if early else None
        #: Distilled LoRAs are for making something from noise; other tasks go their own way through the steps.
        self.few = few_steps_of(self.named)
        if loads:
            check_lora_asked(given, bool(self.named))
        self.mixing, self.loras = Mixing.of(
            self.named, given.lora_router if loads else None, given.lora_mask if loads else ()
        )
        self.matches: list[Matched] = []
        self.shares = shares_of(given, len(self.loras), self.mixing is not None) if loads else ()
        location = locate(given.model, files=loads)
        if given.prompt is None and location.kind not in ("folder", "file"):
            raise UsageError(_NO_PROMPT)
        self.device = resolve_device(given.device if loads else None)
        self.dtype = resolve_dtype(given.dtype if loads else None, self.device)
        if loads:
            check_offload(given.offload, self.device, "--")
        self.model = Model.at(location, given.model, given.parts_from if loads else None)
        if self.model.checkpoint is not None:
            self.notes.append(self.model.checkpoint.told())
        if model is None:
            self.model.check_inputs(self.task.command, inputs)
        else:
            self.model = model(self.model)
        self._check_call()
        given = self.given
        if attends and not early:
            self.attention = Attention.of(given, self.model.folder)
        if self.attention is not None:
            self.attention.check_recipe(self.model)
        self._take_fast()
        if loads:
            self._check_parts(given)

    def _check_call(self) -> None:
        """Refuse a class that makes no pictures, and a prompt where none is read or none where one is."""
        made = makes_nothing(self.model.pipeline_class)
        if made is not None:
            facts = facts_of(self.model.class_name)
            prior = facts is not None and self.model.class_name in facts.priors
            instead = (
                "give it as --ip-adapter, with --image-prompt FILE, and a model of its family as --model"
                if prior
                else "call it from Python (genkit.load, genkit.patch)"
            )
            raise UnsupportedError(f"{self.model.class_name} makes {made}, no pictures or videos; {instead}")
        prompt = self.given.prompt
        if prompt is None and self.model.reads_prompt:
            raise UsageError(_NO_PROMPT)
        if prompt and not self.model.reads_prompt:
            raise UsageError(f"{self.model.class_name} reads no prompt: got {shown(prompt)}; leave it out")
        if prompt is None:
            self.given = self.settings = self.given.replace(prompt="")

    def _take_fast(self) -> None:
        """The model's few-step LoRA where it is asked for, and what distilled LoRAs ask of the run."""
        if getattr(self.given, "fast", False):
            lora = fast_lora(self.model)
            self.loras = (*self.loras, lora)
            self.shares = (*self.shares, Share()) if self.shares else ()
            self.few = few_steps_of([*self.named, lora])
            if isinstance(self.given, AttentionSettings):
                self.notes += remarks(self.given, [lora])
        if self.few is None:
            return
        if hasattr(self.given, "fast"):
            self.notes += self.few.notes(self.given)
            return
        self.notes.append(
            f"{self.few.name} is made for {counted(self.few.sampling.steps, 'step')} from noise; genkit "
            f"{self.task.command} takes "
            "its own way, on which it was not trained"
        )
        self.few = None

    def _check_parts(self, given: LoadSettings) -> None:
        """Refuse what the model's classes or this machine do not have."""
        if folders_only(given.quantize) and self.model.checkpoint is not None:
            raise UsageError(
                f"--quantize {given.quantize} with a model in one file: only folders are read that way; take fp8"
            )
        if given.quantize is not None:
            loras = bool(self.loras or self.mixing is not None)
            chosen, told = choose(given.quantize, self.device, loras, given.denoiser)
            self.set(quantize=chosen)
            self.notes += [] if told is None else [told]
        self.single = find_files(given.denoiser, self.model, given.quantize)
        if given.vae_tiling:
            self.model.check_vae("enable_tiling", "--vae-tiling")
        if given.vae_slicing:
            self.model.check_vae("enable_slicing", "--vae-slicing")
            self.notes.append("--vae-slicing has no effect: outputs are decoded one at a time")
        if self.loras or self.mixing is not None:
            check_lora(self.model.pipeline_class)
            if self.model.lora_outline is not None:
                if self.mixing is not None:
                    self.mixing.check(self.model.lora_outline)
                self.matches = match_loras(self.model.lora_outline, self.loras, given.lora_partial)
                self.notes += [line for each in self.matches for line in each.told]
                for found, share in zip(self.matches, self.shares, strict=False):
                    share.check(found)

    def set(self, **changes: Any) -> None:
        """Change settings."""
        self.settings = self.settings.replace(**changes)

    def _open(self, left: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
        """The settings that the pipeline's call takes, with its names for them, but for those ``left`` to the task."""
        names = set(self.given.field_names()) - set(left)
        return [(name, targets) for name, targets in guidance.argument_names(self.model).items() if name in names]

    def fill(self, left: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> None:
        """Open values: from the recipe, from ``genkit.json``, then from the pipeline's own defaults; what the pipeline
        does not know is refused.

        Args:
            left: settings whose open values the task fills in itself, since the pipeline's call is not made.
            own: settings that mean something to the task though the pipeline's call does not know them.
        """
        given, sidecar, known = self.given, self.model.sidecar, self.model.accepted
        recipe = self.attention.recipe if self.attention is not None else None
        advised = {} if recipe is None else recipe.settings
        advised = {name: value for name, value in advised.items() if name in given.field_names()}
        for name, value in advised.items():
            if getattr(given, name) is None:
                self.notes.append(f"recipe {recipe.name} sets {flag(name)} {value:g}")
        if self.few is not None:
            advised = {**advised, **self.few.values}
        changes = {name: value for name, value in advised.items() if getattr(given, name) is None}
        for name, targets in self._open(left):
            target = next((target for target in targets if target in known), None)
            value = getattr(given, name)
            if target is None and name != "fps":
                if value is not None and name not in own:
                    raise UsageError(f"{flag(name)}: {self.model.class_name} takes no {name}; leave it out")
                continue
            if value is None and name not in changes:
                usual = sidecar.call.get(target, known[target].default) if target is not None else None
                value = sidecar.defaults.get(name, usual)
                changes[name] = str(value) if name == "fps" and value is not None else value
        if isinstance(given, SizeSettings):
            self._fill_fps(changes)
        self.set(**changes)
        if self.settings.flow_shift is not None:
            self.model.shift_name()
        guidance.check_experts(self.settings, self.model)
        if not left:
            self.settings, notes = guidance.settle(self.settings, given, self.model)
            self.notes += notes

    def _fill_fps(self, changes: dict[str, Any]) -> None:
        if self.model.kind is IMAGE:
            if self.given.fps is not None:
                raise UsageError(f"--fps: {self.model.class_name} makes images; leave it out")
            changes.pop("fps", None)
        elif self.given.fps is None and changes.get("fps") is None:
            changes["fps"] = self.model.fps

    def close(
        self,
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        steps: int | None = None,
        inputs: Any = None,
        fingerprints: dict[str, Any] | None = None,
        added: Any = None,
        **places: Any,
    ) -> Request:
        """The finished request, after the last checks.

        Args:
            size: height and width of what is made, where they are not the settings'.
            frames: of what is made, likewise.
            steps: how many steps a schedule can name, where it is not all of them.
            inputs, fingerprints, added: see :class:`Request`.
            places: settings that name files, as they mean the same from any folder.
        """
        if isinstance(self.settings, SizeSettings):
            self.check_sizes()
            size = size or (self.settings.height, self.settings.width)
            frames = self.settings.num_frames if frames is None else frames
        assert size is not None, "a task whose settings name no size gives it"
        self.model.check_size(*size, frames)
        steps = self.settings.steps if steps is None else steps
        self._close_attention(steps)
        for share in self.shares:
            if share.steps is not None and steps is not None:
                share.steps.at(steps)
        self._store(places)
        settings = self.settings
        negative = getattr(settings, "negative_prompt", None)
        self.notes += cleaning.remark(self.model.pipeline_class, settings.prompt, negative)
        output = getattr(settings, "output", None)
        if output is not None:
            check_format(output, self.model.kind, frames)
        check_processors(self.model.folder, self.model.parts)
        tokenizers = tokenizers_of(self.model)
        prompts = read_words(tokenizers, settings, self.model, self.attention, self.taught)
        return Request(
            settings, self.task, self.model, self.device, self.dtype, prompts, self.attention, self.loras, inputs,
            (fingerprints or {}) | digests(self.single), steps, tuple(self.notes), tokenizers, self.matches,
            self.mixing, self.shares, frames, frozenset(self.taught), self.few, self._sampler(), added, self.single,
        )  # fmt: skip

    def _sampler(self) -> Sampler | None:
        """The sampler that is asked for, fitted to the model."""
        text = getattr(self.settings, "scheduler", None)
        if text is None:
            return None
        if self.few is not None:
            raise UsageError(f"--scheduler: {self.few.name} brings its own sampler; leave one of both out")
        return find_sampler(text, self.model, self.settings.flow_shift, self.settings.steps)

    def _origin(self, name: str | None) -> str | None:
        """Where parts come from that the model's file does not hold, as it means the same from any folder."""
        path = None if name is None else locate(name, "--parts-from")
        return full_path(name) if path is not None and path.kind == "folder" else name

    def check_sizes(self) -> None:
        """Refuse a size that the model has no latents for; UsageError."""
        if self.model.rule is not None:
            self.model.rule.check(self.settings.height, self.settings.width, self.settings.num_frames)

    def _close_attention(self, steps: int | None) -> None:
        if self.attention is None:
            return
        guided = guidance.guided(self.settings, self.model)
        self.attention = self.attention.settled(self.model, steps)
        self.attention.check(self.model, steps, guided, (self.device, self.dtype))

    def _store(self, places: dict[str, Any]) -> None:
        """Settings as they mean the same from any folder and at any time."""
        given = self.given
        changes: dict[str, Any] = {
            "model": self.model.name,
            **places,
        }
        if isinstance(given, DrawSettings):
            changes["seed"] = given.seed if given.seed is not None else draw_seed()
        if isinstance(given, LoadSettings):
            changes["lora"] = tuple(map(str, self.named))
            changes["denoiser"] = tuple(each.text for each in self.single)
            changes["parts_from"] = self._origin(given.parts_from)
            changes["lora_router"] = full_path(given.lora_router)
            changes["lora_mask"] = tuple(str(full_path(mask)) for mask in given.lora_mask)
            changes["device"], changes["dtype"] = str(self.device), str(self.dtype).removeprefix("torch.")
        if isinstance(given, AttentionSettings) and self.attention is not None:
            changes["recipe"] = recipe_place(given.recipe)
            changes["attention_args"] = self.attention.args
            changes["schedule"] = self.attention.text
        self.set(**changes)


def draw_seed() -> int:
    """A seed for a run that is given none."""
    return secrets.randbelow(2**32)


def read_words(
    tokenizers: dict[str, Any],
    settings: Any,
    model: Model,
    attention: Attention | None,
    taught: Collection[str],
) -> Prompts:
    """The prompts of settings as a model will read them, with the rules that weigh their words."""
    sidecar = model.sidecar
    prompts = read_prompts(
        tokenizers, settings, sidecar.limits.get("max_prompt_tokens"), taught=taught, expected=sidecar.prompts_name
    )
    if not prompts.words:
        return prompts
    rules = prompts.words.rules(settings, model, tokenizers)
    check_words(rules, model, attention)
    return replace(prompts, rules=rules)


def full_path(name: str | None) -> str | None:
    """A file's name as it means the same from any folder."""
    return None if name is None else str(Path(name).expanduser().resolve())
