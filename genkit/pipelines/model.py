"""A model as far as it is known without its weights: folder, class, configurations, denoisers without values."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import types
import typing
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted, explain
from genkit.families.facts import tells_flow
from genkit.families.inputs import Inputs, inputs_of, takes
from genkit.families.lookup import facts_of
from genkit.families.sizes import ReadConfig, SizeRule
from genkit.lora.door import has_loader, loadable
from genkit.models import Sidecar, check_folder, read_sidecar
from genkit.models.check import fingerprint, read_index, read_part_config
from genkit.models.registry import Location
from genkit.pipelines.checkpoint import Checkpoint
from genkit.pipelines.fits import check_fits
from genkit.pipelines.kinds import Kind, accepted, demanded, kind_of, native_fps, size_rule, token_grid
from genkit.pipelines.load import find_class, source_of
from genkit.pipelines.parts import class_named, empty_part
from genkit.pipelines.request import flag
from genkit.reading.files import place
from genkit.schema import read

_DENOISERS = ("transformer", "unet", "prior", "denoiser")


@dataclass(frozen=True)
class Model:
    """A model folder that passed every check that needs no weights.

    Args:
        name: as settings store it: shipped name, hub id or full path.
        folder: where it lies; of a whole model in one file, its configurations.
        pipeline_class: its Diffusers class.
        kind: what it makes.
        sidecar: its ``genkit.json``.
        parts: the entries of ``model_index.json`` that name a class, as (library, class).
        checkpoint: the file that holds weights of it; None where the folder holds them all.
    """

    name: str
    folder: Path
    pipeline_class: type
    kind: Kind
    sidecar: Sidecar
    parts: dict[str, tuple[str, str]]
    checkpoint: Checkpoint | None = None

    @classmethod
    def at(cls, location: Location, name: str, parts_from: str | None = None) -> Model:
        """The model at a place; one of the hub is downloaded.

        Args:
            location: from :func:`genkit.models.locate`.
            name: by which the user calls it.
            parts_from: see :func:`genkit.load`.

        Raises:
            ArtifactError, UnsupportedError: see :meth:`of`. UsageError: a file that is no model.
        """
        folder, checkpoint = source_of(location, parts_from)
        full = str(location.path.resolve()) if location.path and location.kind != "shipped" else name
        return cls.of(folder, full, checkpoint)

    @classmethod
    def of(cls, folder: Path, name: str, checkpoint: Checkpoint | None = None) -> Model:
        """Read a folder, with the file that holds weights of it.

        Raises:
            ArtifactError: a part is missing or broken. UnsupportedError: a class that this Diffusers does not have.
        """
        left = () if checkpoint is None else checkpoint.left
        index = check_folder(folder, () if checkpoint is None else (*checkpoint.parts, *left))
        found = find_class(folder, index["_class_name"])
        check_fits(folder)
        parts = {
            part: (str(entry[0]), str(entry[1]))
            for part, entry in index.items()
            if isinstance(entry, list) and len(entry) == 2 and None not in entry and part not in left
        }
        sidecar = read_sidecar(folder)
        _check_call(sidecar, accepted(found), found.__name__)
        return cls(name, folder, found, kind_of(found), sidecar, parts, checkpoint)

    @property
    def source(self) -> tuple[Path, str | None]:
        """What :func:`genkit.load` takes for it: the folder or file, and where a file's other parts come from."""
        return (self.folder, None) if self.checkpoint is None else (self.checkpoint.path, str(self.folder))

    def fingerprint(self) -> str:
        """A digest that changes when its files change, see :func:`genkit.models.check.fingerprint`."""
        return fingerprint(self.folder, *(() if self.checkpoint is None else (self.checkpoint.path,)))

    @property
    def class_name(self) -> str:
        """Name of the pipeline's class."""
        return self.pipeline_class.__name__

    @cached_property
    def config(self) -> ReadConfig:
        """A reader of its parts' configurations and ``model_index``; an absent part reads as empty."""
        return configs_of(self.folder)

    @cached_property
    def rule(self) -> SizeRule | None:
        """The rule of sizes of its class, sharpened by its ``genkit.json``; None when only the pipeline knows."""
        rule = size_rule(self.class_name, self.config)
        if rule is None:
            return None
        limits = self.sidecar.limits
        return dataclasses.replace(
            rule,
            multiple=limits.get("multiple", rule.multiple),
            frames_multiple=limits.get("frames_multiple", rule.frames_multiple),
        )

    @cached_property
    def accepted(self) -> dict[str, Any]:
        """The arguments of the pipeline's call, by name."""
        return accepted(self.pipeline_class)

    @property
    def reads_prompt(self) -> bool:
        """Whether its call takes a prompt; some start from a picture or from noise alone."""
        return "prompt" in self.accepted

    @property
    def flow(self) -> bool:
        """Whether it is trained on flows: as its family says, else as its scheduler does."""
        facts, scheduler = facts_of(self.class_name), self.config("scheduler")
        told = None if facts is None else facts.objective
        return tells_flow(scheduler) if told is None else told.flow(scheduler)

    @property
    def fps(self) -> str:
        """Frames per second that suit it when nobody says."""
        return native_fps(self.class_name)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int] | None:
        """The (T, H, W) token grid of a size in pixels, or None when it is not known."""
        return token_grid(self.class_name, self.config, frames, height, width)

    def part_class(self, part: str) -> type | None:
        """The Diffusers class of a part, or None for an absent part or another library's."""
        library, name = self.parts.get(part, ("", ""))
        return class_named(library, name) if library == "diffusers" else None

    def class_of(self, part: str) -> type | None:
        """The class of a part in Diffusers, transformers or the pipeline's own module; None when it is elsewhere."""
        return class_named(*self.parts.get(part, ("", "")))

    @cached_property
    def outline(self) -> Any:
        """The pipeline's denoisers with all their layers and no values: what can be patched is asked of them.

        Has ``components`` like the pipeline, and a class of its name.

        Raises:
            ArtifactError: a configuration that its class refuses.
        """
        components = {}
        for part in self.parts:
            kind = self.part_class(part)
            if kind is not None and part.startswith(_DENOISERS) and hasattr(kind, "from_config"):
                components[part] = self.without_values(part, kind)
        return type(self.class_name, (), {"components": components})()

    @cached_property
    def lora_outline(self) -> Any:
        """The parts that take LoRA with all their layers and no values: what a LoRA file is matched with.

        Has these parts and the pipeline's reader of LoRA files as attributes, and a class of its name. None when the
        class of such a part is neither in Diffusers nor in transformers, so that only the loaded pipeline tells.

        Raises:
            ArtifactError: a configuration that its class refuses.
        """
        kind: Any = self.pipeline_class
        found: dict[str, Any] = {"_lora_loadable_modules": loadable(kind)}
        if has_loader(kind):
            found["lora_state_dict"] = staticmethod(kind.lora_state_dict)
        for part in loadable(kind):
            if part in self.outline.components:
                found[part] = self.outline.components[part]
            elif part in self.parts:
                own = self.class_of(part)
                if own is None:
                    return None
                found[part] = self.without_values(part, own)
        return type(self.class_name, (), found)()

    def without_values(self, part: str, kind: Any) -> Any:
        """A part of a class of Diffusers or transformers on the meta device."""
        return empty_part(self.folder, part, kind)

    def check_inputs(self, command: str, given: tuple[str, ...] = ()) -> None:
        """Refuse a pipeline that works on something which a command cannot give it.

        Args:
            command: for the message.
            given: arguments of the pipeline's call that the task gives.

        Raises:
            UsageError: a picture, clip or mask is missing that genkit generate can give.
            UnsupportedError: an argument without a default that nothing can give.
        """
        missing = [name for name in demanded(self.pipeline_class) if name not in given]
        if missing and command == "generate":
            flags = self._flags_for(missing)
            if flags is not None:
                raise UsageError(
                    f"{self.class_name} works on {', '.join(missing)}: give {flags}; genkit models tells what a model "
                    "takes"
                )
        if missing:
            raise UnsupportedError(
                f"{self.class_name} works on {', '.join(missing)}, which genkit {command} cannot give it; take a model "
                f"whose pipeline starts from text alone, or call this one from Python (genkit.load, genkit.patch)"
            )

    def _flags_for(self, arguments: list[str]) -> str | None:
        """The flags of ``genkit generate`` for arguments of the call; None when one of them has none."""
        facts = facts_of(self.class_name)
        told = Inputs() if facts is None else inputs_of(facts.inputs, self.class_name)
        found = takes(told, self.accepted)
        kinds = [[kind for kind, names in found.items() if name in names] for name in arguments]
        if not all(kinds):
            return None
        join = " or " if told.needs == () else " and "  # where the record says that one of them will do
        return join.join(dict.fromkeys(f"{flag(each[0])} FILE" for each in kinds))

    def check_size(self, height: int | None, width: int | None, num_frames: int | None) -> None:
        """Refuse sizes outside the model's limits; UsageError."""
        limits = self.sidecar.limits
        for name, value, low, high in (
            ("height", height, "min_height", "max_height"),
            ("width", width, "min_width", "max_width"),
            ("num_frames", num_frames, None, "max_frames"),
        ):
            if value is None:
                continue
            if low in limits and value < limits[low]:
                raise UsageError(f"{flag(name)}: got {value}, {self.name} starts at {limits[low]}")
            if high in limits and value > limits[high]:
                raise UsageError(f"{flag(name)}: got {value}, {self.name} goes up to {limits[high]}")
        self._check_positions(height, width, num_frames)

    def _check_positions(self, height: int | None, width: int | None, num_frames: int | None) -> None:
        """Refuse sizes beyond the table of rotary positions that some models have for every axis."""
        most = self.config("transformer").get("rope_max_seq_len")
        if type(most) is not int or height is None or width is None:
            return
        grid = self.grid(num_frames or 1, height, width) or (0, 0, 0)
        for name, value, tokens in zip(
            ("num_frames", "height", "width"), (num_frames, height, width), grid, strict=True
        ):
            if tokens > most:
                raise UsageError(
                    f"{flag(name)}: got {value}, which is {counted(tokens, 'token')}; the positions of "
                    f"{self.name} end at {most}"
                )

    def check_vae(self, method: str, flag: str) -> None:
        """Refuse a way of decoding that the model's VAE does not have; UnsupportedError."""
        vae = self.part_class("vae")
        if vae is not None and not hasattr(vae, method):
            raise UnsupportedError(f"{flag}: {self.class_name} has no VAE that can do it; leave it out")

    def shift_name(self) -> str:
        """What the scheduler calls its timestep shift.

        Raises:
            UnsupportedError: it has none, or sets it by the size of the picture.
        """
        config = self.config("scheduler")
        kind = config.get("_class_name", "its scheduler")
        name = next((name for name in ("flow_shift", "shift") if name in config), None)
        if name is None or not self.flow:
            raise UnsupportedError(
                f"--flow-shift: {kind} of {self.name} is no flow scheduler with a shift; leave it out"
            )
        if config.get("use_dynamic_shifting"):
            raise UnsupportedError(
                f"--flow-shift: {kind} of {self.name} shifts by the size of the picture (use_dynamic_shifting); "
                "leave it out"
            )
        return name


def _check_call(sidecar: Sidecar, known: dict[str, inspect.Parameter], class_name: str) -> None:
    """Refuse arguments in ``genkit.json`` that the pipeline's call does not have, or not with such a value."""
    for name, value in sidecar.call.items():
        what = f"{place(sidecar.source)}, call.{name}"
        if name not in known:
            raise ArtifactError(explain(what, value, f"arguments that the call of {class_name} has; leave it out"))
        hint = _plain(known[name].annotation)
        if hint is None and value is not None:
            raise ArtifactError(explain(what, value, f"null; {class_name} takes nothing there that a file can hold"))
        if hint is not None and value is not None:
            read(hint, value, what, ArtifactError)


def _plain(hint: Any) -> Any:
    """The part of an annotation that values of a file can have; None when there is no such part."""
    if hint is inspect.Parameter.empty:
        return Any
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = [each for each in (typing.get_args(hint) if union else (hint,)) if _is_plain(each)]
    return reduce(operator.or_, parts) if parts else None


def _is_plain(hint: Any) -> bool:
    if hint in (bool, int, float, str, Any):
        return True
    inside = [each for each in typing.get_args(hint) if each is not Ellipsis]
    return typing.get_origin(hint) in (list, tuple, dict) and all(_plain(each) is not None for each in inside)


def configs_of(folder: Path) -> ReadConfig:
    """A reader of a model folder's parts' configurations and ``model_index``; an absent part reads as empty. Every file
    is read once."""

    @cache
    def config(part: str) -> dict:
        if part == "model_index":
            return read_index(folder)
        return read_part_config(folder, part, "scheduler_config.json" if part == "scheduler" else "config.json")

    return config
