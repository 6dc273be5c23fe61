"""Where an attention call happens: the site of a call, and the module that a method is put on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genkit.layout import TokenLayout

if TYPE_CHECKING:
    import torch

ROLES = (
    "self", "cross", "joint", "spatial", "temporal", "audio_self", "audio_to_video", "video_to_audio", "audio_cross",
)  # fmt: skip
_new, _set = object.__new__, object.__setattr__
#: Self-attention along some axes of the grid only; the other axes are folded into the batch.
FOLDED = ("spatial", "temporal")


def among(role: str, roles: Iterable[str]) -> bool:
    """Whether roles a method or a caller names include a role: self-attention stands for its folded kinds too."""
    return role in roles or (role in FOLDED and "self" in roles)


@dataclass(frozen=True)
class Site:
    """One attention call: where in the model, when in the sampling loop, and how its tokens are laid out.

    Args:
        name: dotted module path, for instance ``"blocks.3.attn1"``.
        layer: index among the model's attention layers of this role, from 0; single blocks continue after double ones.
        layers: how many layers of this role the model has.
        role: one of :data:`ROLES`. "spatial" is self-attention within each frame, "temporal" along the frames of each
            place; the batch holds the frames or places of all rows, and the layout has only the other axes.
        heads: number of query heads.
        layout: layout of the queries.
        key_layout: layout of the keys; equal to ``layout`` for ``self`` and ``joint``.
        step: index in the sampling loop, from 0, or None outside a loop.
        steps: number of sampling steps, or None when unknown.
        branch: ``"cond"``, ``"uncond"``, ``"cond_uncond"`` ... as the pipeline announces it, or None.
        scale: softmax scale given by the model; None means ``1 / sqrt(head dim)``.
        key_mask: bool (B, Nk), True = attend; present only when the model passed a mask that hides something.
        finest: the largest token grid that attention of the model sees (UNets have several); None = that of ``layout``.
        all_heads: number of query heads where processes share them (context parallelism): this one has ``heads`` of
            them, beginning with number ``first_head``. None = all are here.
        run: number of the sampling run under the patch, from 0.
        both: the batch holds both branches of guidance, the unconditional half first; False also when nobody tells.
        places: height and width of the places in the batch of "temporal" attention, in raster order within every row;
            None where the record does not tell.
        guide: name of the layer of a coarser decoder block that this temporal layer corresponds to, its own name in
            that block; "" where there is none.
        angles: (frames, device) -> cosines and sines (frames, D / 2) by which pairs of neighbouring channels of frame
            0, 1, ... were turned along time; None where the model does not derive them from the latents' shape.
        output: (B, Nq, H, D) what the layer's attention gave in this call; only for methods that
            :attr:`Method.reads_output`.
    """

    name: str
    layer: int
    layers: int
    role: str
    heads: int
    layout: TokenLayout
    key_layout: TokenLayout
    step: int | None = None
    steps: int | None = None
    branch: str | None = None
    scale: float | None = None
    key_mask: torch.Tensor | None = dataclasses.field(default=None, compare=False)
    finest: tuple[int, int, int] | None = None
    first_head: int = 0
    all_heads: int | None = None
    run: int = dataclasses.field(default=0, compare=False)
    both: bool = dataclasses.field(default=False, compare=False)
    places: tuple[int, int] | None = None
    guide: str = ""
    angles: Callable[[int, Any], tuple[torch.Tensor, torch.Tensor]] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )
    output: torch.Tensor | None = dataclasses.field(default=None, compare=False, repr=False)

    def at(
        self,
        step: int | None,
        steps: int | None,
        branch: str | None,
        key_mask: torch.Tensor | None = None,
        run: int = 0,
        both: bool = False,
    ) -> Site:
        """The same site at another moment. As ``dataclasses.replace``, in a tenth of its time: every call needs one."""
        other = _new(Site)
        fields = self.__dict__.copy()
        fields["step"], fields["steps"], fields["branch"], fields["key_mask"] = step, steps, branch, key_mask
        fields["run"], fields["both"] = run, both
        _set(other, "__dict__", fields)
        return other

    def reading(self, output: torch.Tensor) -> Site:
        """The same site, told what the attention gave; as cheap as :meth:`at`."""
        other = _new(Site)
        _set(other, "__dict__", self.__dict__ | {"output": output})
        return other

    @classmethod
    def of_layout(cls, layout: TokenLayout, role: str | None = None, heads: int = 1, **more: Any) -> Site:
        """A site outside any model, for tools and tests: role ``joint`` when the layout has text, else ``self``."""
        guessed = "joint" if layout.text_span else "self"
        fields = {"name": "site", "layer": 0, "layers": 1, "key_layout": layout, **more}
        return cls(role=role or guessed, heads=heads, layout=layout, **fields)


def base_layer(module: Any) -> Any:
    """A layer inside what adapters have wrapped around it: it stays when they come and go."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


@dataclass(frozen=True)
class Projections:
    """The layers of an attention module that make queries, keys and values; None = there is no such layer.

    Models name them differently; the record of a family knows how. Looked up at every access, since adapters may
    replace them.
    """

    module: Any = None
    names: tuple[str, str, str] = ("to_q", "to_k", "to_v")

    @property
    def q(self) -> Any:
        """The projection to queries."""
        return getattr(self.module, self.names[0], None)

    @property
    def k(self) -> Any:
        """The projection to keys."""
        return getattr(self.module, self.names[1], None)

    @property
    def v(self) -> Any:
        """The projection to values."""
        return getattr(self.module, self.names[2], None)


#: How the two channels of a turned pair lie: beside each other, or half the channels apart.
NEIGHBOURS, HALVES = "neighbours", "halves"


@dataclass(frozen=True)
class Rotary:
    """How the attention modules of a family turn queries by their positions, after ``norm_q`` where they have one.

    Args:
        argument: of the module's forward: cosines and sines (N, D) or (B, N, D), complex factors (N, D / 2), or several
            of these, the grid's first. N are the tokens of the grid, all but the text's, or all of the call. None comes
            where nothing is turned; "" = the family turns nothing.
        pairs: :data:`NEIGHBOURS` or :data:`HALVES`.
    """

    argument: str = "image_rotary_emb"
    pairs: str = NEIGHBOURS


@dataclass(frozen=True)
class Place:
    """One attention module a method is put on, as :meth:`Method.install` gets it.

    Args:
        name, role, layer, layers, heads: as in :class:`Site`.
        module: the model's attention module; methods may read its sizes and follow its parts by forward hooks.
        always: whether the schedule covers every step and branch at this layer.
        projections: the module's layers that make queries, keys and values; default: those of Diffusers' usual names.
        guide: as in :class:`Site`.
        text: whether text is among the tokens of this module, for joint attention.
        rotary: how queries are turned; None = the family's record does not tell.
        timestep: name of the denoiser's argument with the noise level; "" = it has none, or nobody tells.
    """

    name: str
    role: str
    layer: int
    layers: int
    heads: int
    module: Any = dataclasses.field(compare=False, repr=False)
    always: bool = True
    projections: Projections = dataclasses.field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    guide: str = ""
    text: bool = True
    rotary: Rotary | None = None
    timestep: str = ""

    def __post_init__(self) -> None:
        if self.projections is None:
            object.__setattr__(self, "projections", Projections(self.module))
