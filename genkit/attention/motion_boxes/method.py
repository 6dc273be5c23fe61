"""Motion by boxes: an object that goes where a track of boxes says, by a small trained module beside the attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method, check_int, check_number
from genkit.attention.motion_boxes.track import BoxTrack, Encoder, LayerWeights
from genkit.attention.registry import register
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens
from genkit.attention.weights import PatchWeights, like
from genkit.errors import UnsupportedError
from genkit.layout import TokenLayout

ENCODER = "encoder"


@register("motion_boxes")
@dataclass(frozen=True)
class MotionBoxes(Method):
    """The object of the prompt follows a track of boxes: a trained term beside the layers' own attention.

    ``BoxTrack.of(patch.cache).set(boxes)`` tells the boxes of every frame. A small spatio-temporal encoder makes
    features of them, once per run; in every layer a network on these and on the layer's values gives a term that is
    added to the attention's output. Its last projection starts at zero: without training the model is itself, bit for
    bit, and so it is without boxes. It shares its layers with any other method.

    Args:
        strength: factor of the term; 0 = off.
        width: features per token.
        rank: width of the network in a layer.
        weights: safetensors file with trained weights, read when the patch is made.
        seed: start of the weights.

    Cost: per layer ``rank (2 C + width)`` products per token, about 3 % of the layer; weights ``layers rank (2 C +
    width) + 15 width^2``.

    Source: the motion module of DreamVideo-2, arXiv 2410.13830, in a form for transformers that is ours.
    """

    strength: float = field(default=1.0, metadata={"help": "factor of the term"})
    width: int = field(default=48, metadata={"help": "features of the boxes per token"})
    rank: int = field(default=40, metadata={"help": "width of the network in a layer"})
    weights: None | str = field(default=None, metadata={"help": "file with trained weights"})
    seed: int = field(default=0, metadata={"help": "start of the weights"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    own_task: ClassVar[str] = (
        "it follows boxes that are told for every sample; genkit train weights motion_boxes trains it"
    )
    declines: ClassVar[str] = "no boxes were set: --boxes FILE, in Python BoxTrack.of(patch.cache).set(boxes)"
    source: ClassVar[str] = "DreamVideo-2, arXiv 2410.13830"

    def __post_init__(self):
        super().__post_init__()
        check_number("motion_boxes", "strength", self.strength, 0, 1e3)
        check_int("motion_boxes", "width", self.width, 1)
        check_int("motion_boxes", "rank", self.rank, 1)
        check_int("motion_boxes", "seed", self.seed, 0)

    @property
    def adds(self) -> bool:
        """See :attr:`Method.adds`."""
        return True

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`: no keys are read."""
        return True

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        return "grid tokens are told where the boxes are"

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the layer's weights, and with the first layer the encoder that all share."""
        weights = PatchWeights.of(cache)
        own = LayerWeights(place, self.width, self.rank, self.seed)
        if not weights.has(self.name, ENCODER):
            weights.put(
                self.name, ENCODER, Encoder(self.width, self.seed, **like(place.projections.q)), self.settings()
            )
        weights.put(self.name, place.name, own, self.settings())
        return ()

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """While training, boxes are encoded anew in every call: the encoder changes, and graphs serve once."""
        if torch.is_grad_enabled():
            BoxTrack.of(cache).forget()

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`: the term to add. Declines without boxes."""
        self.require(site, cache)
        check_tokens(q, k, site)
        if self.strength == 0:
            return None
        weights, (start, stop) = PatchWeights.of(cache), site.layout.grid_span
        encoder: Any = weights.at(self.name, ENCODER)
        features = BoxTrack.of(cache).encoded(encoder, site.layout.grid, q.shape[0], q)
        if features is None:
            return None
        term = self.strength * weights.at(self.name, site.name)(v[:, start:stop].flatten(2), features)
        term = term.unflatten(-1, tuple(q.shape[2:]))
        return torch.nn.functional.pad(term, (0, 0, 0, 0, start, q.shape[1] - stop))

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """There is none: see :meth:`Method.mask`."""
        raise UnsupportedError(
            "motion_boxes hides nothing: it adds a term that follows boxes. What it does is seen in a clip: "
            "genkit generate PROMPT --boxes track.json"
        )
