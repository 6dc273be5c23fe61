"""The record that describes a family of models. Nothing here needs torch or Diffusers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genkit.attention.site import FOLDED, Projections, Rotary
from genkit.errors import UnsupportedError
from genkit.families.facts import PipelineFacts
from genkit.families.stack import BlockStack
from genkit.layout import GRID, TEXT, Segment, TokenLayout

if TYPE_CHECKING:
    from torch import nn

MAIN = "main"


@dataclass(frozen=True)
class Untold:
    """A stream whose layout cannot be told in this call, for a reason; its calls keep the model's own attention."""

    reason: str
    has_grid = False
    grid = (0, 0, 0)


@dataclass(frozen=True)
class OpenLayout:
    """A stream of which one segment is as long as the call's tokens say, such as cached keys.

    Args:
        closed: the layout without that segment's tokens; the segment is there with length 0.
        segment: its name.
    """

    closed: TokenLayout
    segment: str

    @property
    def has_grid(self) -> bool:
        """As of the layout."""
        return self.closed.has_grid

    @property
    def grid(self) -> tuple[int, int, int]:
        """As of the layout."""
        return self.closed.grid

    def of(self, length: int) -> TokenLayout:
        """The layout of a call with ``length`` tokens, at least those of the other segments."""
        more = length - self.closed.length
        if more < 0:
            return self.closed
        parts = self.closed.segments
        return TokenLayout(
            self.closed.grid,
            tuple(
                Segment(part.name, more) if part.name == self.segment else part
                for part in parts
                if part.length or part.name == GRID or (part.name == self.segment and more)
            ),
            copies=self.closed.copies,
        )


Streams = dict[str, TokenLayout | Untold | OpenLayout]
#: Roles whose keys are the tokens that ask.
OWN_KEYS = ("self", "joint", "audio_self", *FOLDED)


@dataclass(frozen=True)
class SiteRule:
    """Which attention modules have a role, and which token streams they join.

    Args:
        pattern: regular expression for the whole dotted module path.
        role: role of these modules, see ``genkit.attention.site.ROLES``.
        queries: name of the stream the queries come from. May refer to groups of the pattern, for instance
            ``"level{1}"``.
        keys: names of the streams of the keys, likewise, one per attention call the module makes in a row (Wan
            image-to-video attends image tokens first and text tokens second). A stream the layout rule does not give is
            a plain sequence under that name. Empty: the queries' own stream. Self- and joint attention whose queries
            are a part of the keys (the image asks image and text; keys from a cache) names the stream that holds both.
        added_keys: the same for modules with additional key projections (``add_k_proj``).
        some_calls: the module also makes calls of other tokens (text among itself, references among themselves); they
            keep the model's own attention.
        applies: question about (model, path, module) where the path alone does not tell; the rule is for those it
            answers with True.
        places: temporal attention: name of the stream whose height and width are the places in the batch; may refer
            to groups of the pattern. "" = not told.
        guide: temporal attention of a decoder block: path of the corresponding module in the decoder's first block
            with such attention that BroadWay lets the finer ones follow; may refer to groups of the pattern. "" = none.
        ask_module: the module's ``is_cross_attention`` decides between self and cross; the rule names the usual role.
        text: joint attention: whether text is among its tokens.
    """

    pattern: str
    role: str
    queries: str = MAIN
    keys: tuple[str, ...] = ()
    added_keys: tuple[str, ...] = ()
    places: str = ""
    guide: str = ""
    ask_module: bool = False
    some_calls: bool = False
    text: bool = True
    applies: Callable[[Any, str, Any], bool] | None = None


@dataclass(frozen=True)
class Family:
    """How the models of one family lay out tokens and name their attention modules.

    Args:
        name: short name.
        classes: Diffusers model classes this record describes.
        pipelines: the usual pipelines.
        rules: which module is what; modules that match no rule keep their own attention.
        streams: rule from (model, forward arguments by name) to the layout of every token stream; :class:`Untold` where
            it cannot be told, :class:`OpenLayout` where only a call tells a segment's length.
        reads: names of the forward arguments ``streams`` looks at.
        sample: name of the forward argument with the noisy latents.
        timestep: name of the forward argument with the noise level; "" when the model has none.
        order: prefixes of module paths in the order of execution, for numbering layers.
        grid: the grid rule in words.
        text: where text tokens sit in joint attention: "first", "last" or "apart" (cross-attention).
        video: whether the grid has a time axis.
        branches: names the pipelines announce for their calls; empty when they announce none.
        halves: whether a guided pipeline that announces nothing computes both branches in one call, the unconditional
            half of the batch first.
        varying_text: whether attention calls may hold fewer text tokens than the forward's arguments say.
        heads_attribute: attribute of an attention module with its number of query heads.
        projection_names: attributes with the projections to queries, keys and values.
        tiles: rule from (model, forward arguments by name) to the streams whose grid does not come in raster order:
            stream -> (t, h, w), the grid comes box by box of this size, in raster order of boxes and inside a box.
            None = every stream in every call is in raster order.
        time_positions: how a pass can have other positions in time, see :func:`genkit.patching.time_shift`:
            ``"shape"`` when the model's ``rope`` derives them from the latents' shape, else the argument that carries
            them; "" when it has none.
        unserved: role -> why no rule names the family's attention of that kind.
        timed: whether the layouts tell the time in seconds of every token of picture and sound.
        makes: "sound" where the models make sound; else ``video`` tells what they make.
        rotary: how joint attention turns its queries; None = not told.
        stack: how tokens go through the blocks, for training that routes tokens; None = not told.
        facts: what is known of the pipelines: sizes, frames per second, latents, text, training.
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
    facts: PipelineFacts
    timestep: str = "timestep"
    branches: tuple[str, ...] = ()
    halves: bool = False
    varying_text: bool = False
    heads_attribute: str = "heads"
    projection_names: tuple[str, str, str] = ("to_q", "to_k", "to_v")
    tiles: Callable[[Any, Mapping[str, Any]], dict[str, tuple[int, int, int]]] | None = None
    time_positions: str = ""
    unserved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    makes: str = ""
    timed: bool = False
    rotary: Rotary | None = None
    stack: BlockStack | None = None
    notes: str = ""

    def heads(self, module: Any) -> int | None:
        """Number of query heads of an attention module; None when only a call tells it."""
        count = getattr(module, self.heads_attribute, None)
        return None if count is None else int(count)

    def projections(self, module: Any) -> Projections:
        """The layers that make queries, keys and values; None for those that are fused or go by another name."""
        return Projections(module, self.projection_names)

    @property
    def kind(self) -> str:
        """What the models make: "video", "image" or "sound"."""
        return self.makes or ("video" if self.video else "image")

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
                if match is not None and (rule.applies is None or rule.applies(model, path, module)):
                    found.append(_found(rule, match, path, module))
                    break
        return sorted(found, key=lambda site: _execution_key(site.path, self.order))


def _found(rule: SiteRule, match: re.Match[str], path: str, module: nn.Module) -> FoundSite:
    role = rule.role
    if rule.ask_module:
        role = "cross" if module.is_cross_attention else "self"
    queries = rule.queries.format(path, *match.groups())
    keys = tuple(stream.format(path, *match.groups()) for stream in rule.keys)
    if rule.added_keys and getattr(module, "add_k_proj", None) is not None:
        keys = rule.added_keys
    if not keys or (rule.ask_module and role in OWN_KEYS):
        keys = (queries,)
    places, guide = (text.format(path, *match.groups()) for text in (rule.places, rule.guide))
    return FoundSite(path, role, queries, keys, rule.pattern, rule.some_calls, module, places, guide, rule.text)


def _execution_key(path: str, order: tuple[str, ...]) -> tuple[Any, ...]:
    head = path.split(".")[0]
    numbers = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split(".")]
    return (order.index(head) if head in order else len(order), numbers)


@dataclass(frozen=True)
class FoundSite:
    """One attention module of a model with its role and streams, and the pattern of the rule that named it."""

    path: str
    role: str
    queries: str
    keys: tuple[str, ...]
    rule: str
    some_calls: bool
    module: Any = dataclasses.field(compare=False)
    places: str = ""
    guide: str = ""
    text: bool = True


def _no_streams(model: Any, args: Mapping[str, Any]) -> Streams:
    raise UnsupportedError(f"there is no record of the token grid of {type(model).__name__}")


def without_attention(name: str, pipelines: tuple[str, ...], facts: PipelineFacts) -> Family:
    """The record of a family of which genkit knows the pipelines but not the attention."""
    return Family(name, (), pipelines, (), _no_streams, (), "", (), "", "", True, facts)


def shape(args: Mapping[str, Any], name: str, dims: int, family: str) -> tuple[int, ...]:
    """Shape of a tensor argument, which must be there and have ``dims`` dimensions."""
    value = args.get(name)
    if value is None or not hasattr(value, "shape"):
        raise UnsupportedError(f"{family}: the token grid follows from {name}, which this call of the model lacks")
    if len(value.shape) != dims:
        raise UnsupportedError(f"{family}: {name} should have {dims} dimensions, got {tuple(value.shape)}")
    return tuple(int(size) for size in value.shape)


def grid_with(
    grid: tuple[int, ...],
    before: tuple[tuple[str, int], ...] = (),
    after: tuple[tuple[str, int], ...] = (),
    copies: tuple[str, ...] = (),
) -> TokenLayout:
    """A grid (T, H, W) with named runs of tokens before and after it; runs of no tokens are left out.

    ``copies`` names the runs that are the grid once more, see :class:`~genkit.layout.TokenLayout`.
    """
    t, h, w = grid
    runs = (*before, (GRID, t * h * w), *after)
    parts = tuple(Segment(name, count) for name, count in runs if count or name == GRID)
    return TokenLayout((t, h, w), parts, copies=copies)


def text_length(args: Mapping[str, Any], family: str, name: str = "encoder_hidden_states") -> int:
    """Number of text tokens, from the (B, T, C) text embeddings."""
    return shape(args, name, 3, family)[1]


__all__ = [
    "MAIN",
    "TEXT",
    "BlockStack",
    "Family",
    "FoundSite",
    "OpenLayout",
    "Rotary",
    "SiteRule",
    "Streams",
    "Untold",
    "grid_with",
    "shape",
    "text_length",
    "without_attention",
]
