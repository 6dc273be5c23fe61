"""The record that describes a family of models, and how a model finds its record."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError
from genkit.layout import GRID, TEXT, Segment, TokenLayout

if TYPE_CHECKING:
    from torch import nn

_RECORDS = (
    "wan",
    "flux",
    "sd3",
    "hunyuan_video",
    "cogvideox",
    "mochi",
    "ltx",
    "ltx2",
    "qwen_image",
    "unet",
)
MAIN = "main"
Streams = dict[str, TokenLayout]


@dataclass(frozen=True)
class SiteRule:
    """Which attention modules have a role, and which token streams they join.

    Args:
        pattern: regular expression for the whole dotted module path.
        role: role of these modules, see ``genkit.attention.site.ROLES``.
        queries: name of the stream the queries come from. May refer to groups of the pattern, for instance
            ``"level{1}"``.
        keys: names of the streams of the keys, one per attention call the module makes in a row (Wan image-to-video
            attends image tokens first and text tokens second). A stream the layout rule does not give is a plain
            sequence under that name. Empty: the queries' own stream.
        added_keys: the same for modules with additional key projections (``add_k_proj``).
        ask_module: the module's ``is_cross_attention`` decides between self and cross; the rule names the usual role.
    """

    pattern: str
    role: str
    queries: str = MAIN
    keys: tuple[str, ...] = ()
    added_keys: tuple[str, ...] = ()
    ask_module: bool = False


@dataclass(frozen=True)
class Family:
    """How the models of one family lay out tokens and name their attention modules.

    Args:
        name: short name.
        classes: Diffusers model classes this record describes.
        pipelines: the usual pipelines.
        rules: which module is what; modules that match no rule keep their own attention.
        streams: rule from (model, forward arguments by name) to the layout of every token stream.
        reads: names of the forward arguments ``streams`` looks at.
        sample: name of the forward argument with the noisy latents.
        order: prefixes of module paths in the order of execution, for numbering layers.
        grid: the grid rule in words.
        text: where text tokens sit in joint attention: "first", "last" or "apart" (cross-attention).
        video: whether the grid has a time axis.
        branches: names the pipelines announce for their calls; empty when they announce none.
        varying_text: whether attention calls may hold fewer text tokens than the forward's arguments say.
        notes: what a user should know.
    """

    name: str
    classes: tuple[str, ...]
    pipelines: tuple[str, ...]
    rules: tuple[SiteRule, ...]
    streams: Callable[[Any, Mapping[str, Any]], Streams]
    reads: tuple[str, ...]
    sample: str
    order: tuple[str, ...]
    grid: str
    text: str
    video: bool
    branches: tuple[str, ...] = ()
    varying_text: bool = False
    notes: str = ""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of attention the family has, in the order of its rules."""
        return tuple(dict.fromkeys(rule.role for rule in self.rules))

    def find_sites(self, model: nn.Module) -> list[FoundSite]:
        """Every attention module of a model that a rule names, in the order of execution."""
        found = []
        for path, module in model.named_modules():
            for rule in self.rules:
                match = re.fullmatch(rule.pattern, path)
                if match is not None:
                    found.append(_found(rule, match, path, module))
                    break
        return sorted(found, key=lambda site: _execution_key(site.path, self.order))


def _found(rule: SiteRule, match: re.Match[str], path: str, module: nn.Module) -> FoundSite:
    role = rule.role
    if rule.ask_module:
        role = "cross" if module.is_cross_attention else "self"
    queries = rule.queries.format(path, *match.groups())
    keys = rule.keys
    if rule.added_keys and getattr(module, "add_k_proj", None) is not None:
        keys = rule.added_keys
    if role in ("self", "joint", "audio_self") or not keys:
        keys = (queries,)
    return FoundSite(path, role, queries, keys, module)


def _execution_key(path: str, order: tuple[str, ...]) -> tuple[Any, ...]:
    head = path.split(".")[0]
    numbers = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split(".")]
    return (order.index(head) if head in order else len(order), numbers)


@dataclass(frozen=True)
class FoundSite:
    """One attention module of a model with its role and streams."""

    path: str
    role: str
    queries: str
    keys: tuple[str, ...]
    module: Any = dataclasses.field(compare=False)


@dataclass(frozen=True)
class FamilyInfo:
    """What `genkit.families()` says about a family.

    Args:
        name: short name.
        classes: Diffusers model classes.
        pipelines: the usual pipelines.
        roles: kinds of attention that can be patched.
        grid: where the token grid comes from.
        text: where text tokens sit in joint attention: "first", "last" or "apart" (cross-attention).
        branches: names the pipelines announce for their calls, for ``Schedule(branches=...)``.
        notes: what else to know.
    """

    name: str
    classes: tuple[str, ...]
    pipelines: tuple[str, ...]
    roles: tuple[str, ...]
    grid: str
    text: str
    branches: tuple[str, ...]
    notes: str


def families() -> tuple[FamilyInfo, ...]:
    """The model families genkit knows, each tested on a tiny model of the real class."""
    names = [field.name for field in dataclasses.fields(FamilyInfo)]
    return tuple(FamilyInfo(**{name: getattr(family, name) for name in names}) for family in records())


@functools.cache
def records() -> tuple[Family, ...]:
    """The full records of all families."""
    return tuple(importlib.import_module(f"genkit.families.{name}").FAMILY for name in _RECORDS)


def unwrap(model: Any) -> Any:
    """The Diffusers module inside torch.compile, DistributedDataParallel and peft wrappers."""
    for _ in range(8):
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config") and hasattr(model, "base_model"):
            model = model.get_base_model()
        elif type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"):
            model = model.module
        else:
            break
    return model


def diffusers_class(model: Any) -> str | None:
    """Name of the most derived class of a model that Diffusers itself defines, or None."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith("diffusers."):
            return cls.__name__
    return None


def family_of(model: Any) -> Family:
    """The record of a denoiser; UnsupportedError names what is missing for an unknown class."""
    name = diffusers_class(model)
    known = {cls: family for family in records() for cls in family.classes}
    if name in known:
        return known[name]
    given = type(model).__name__ if name is None else name
    raise UnsupportedError(
        f"{given} is not a model genkit knows: there is no record of its token grid, text order and attention roles. "
        f"Known: {', '.join(known)}"
    )


def shape(args: Mapping[str, Any], name: str, dims: int, family: str) -> tuple[int, ...]:
    """Shape of a tensor argument, which must be there and have ``dims`` dimensions."""
    value = args.get(name)
    if value is None or not hasattr(value, "shape"):
        raise UnsupportedError(f"{family}: the token grid follows from {name}, which this call of the model lacks")
    if len(value.shape) != dims:
        raise UnsupportedError(f"{family}: {name} should have {dims} dimensions, got {tuple(value.shape)}")
    return tuple(int(size) for size in value.shape)


def grid_with(
    grid: tuple[int, int, int],
    before: tuple[tuple[str, int], ...] = (),
    after: tuple[tuple[str, int], ...] = (),
) -> TokenLayout:
    """A grid with named runs of tokens before and after it; runs of no tokens are left out."""
    runs = (*before, (GRID, grid[0] * grid[1] * grid[2]), *after)
    return TokenLayout(grid, tuple(Segment(name, count) for name, count in runs if count or name == GRID))


def text_length(args: Mapping[str, Any], family: str, name: str = "encoder_hidden_states") -> int:
    """Number of text tokens, from the (B, T, C) text embeddings."""
    return shape(args, name, 3, family)[1]


__all__ = [
    "MAIN",
    "TEXT",
    "Family",
    "FamilyInfo",
    "FoundSite",
    "SiteRule",
    "Streams",
    "diffusers_class",
    "families",
    "family_of",
    "grid_with",
    "records",
    "shape",
    "text_length",
    "unwrap",
]
