"""What every attention method is: frozen settings with a few questions it answers, and its densities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from genkit.attention.site import Place, Site, among
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.layout import TokenLayout

if TYPE_CHECKING:
    import torch

    from genkit.attention.cache import PatchCache
    from genkit.attention.read_blocks import BlocksRead


@dataclass(frozen=True)
class Density:
    """How sparse a plan is, as shares of all query-key pairs.

    Args:
        computed: share of the token pairs the method's definition wants.
        executed: share of the pairs in visited blocks, which is what the machine pays for.
        dense: True when nothing is hidden and plain dense attention runs.
    """

    computed: float
    executed: float
    dense: bool = False

    def __str__(self) -> str:
        text = f"{self.computed:.1%} of pairs wanted, {self.executed:.1%} executed"
        return f"{text} (nothing is hidden: runs dense)" if self.dense else text


@dataclass(frozen=True)
class Method:
    """An attention method: frozen settings plus its mathematics on (q, k, v, site).

    Subclasses are frozen dataclasses registered with :func:`genkit.attention.registry.register`. They are hashable and
    comparable by their settings, so plans can be cached under them.
    """

    name: ClassVar[str] = ""
    roles: ClassVar[tuple[str, ...]] = ("self",)
    needs_grid: ClassVar[bool] = True
    trainable: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    by_data: ClassVar[bool] = False  # queries and keys decide what is read; pictures then need :meth:`seen`
    trained_with: ClassVar[tuple[str, ...]] = ()  # settings that weights only fit as they were in training
    own_task: ClassVar[str] = ""  # of methods that a LoRA cannot be trained through for want of what a run gives: why
    declines: ClassVar[str] = "the method declined this call"  # what a report says when :meth:`attend` gives None
    reads_output: ClassVar[bool] = False  # of methods that add: :attr:`Site.output` holds what the attention gave
    across_steps: ClassVar[bool] = False  # what a call gives depends on calls of earlier steps
    any_tokens: ClassVar[bool] = False  # serves a part of the grid's tokens, too: each for itself, wherever it is
    weighs: ClassVar[bool] = False  # whether :meth:`seen` gives weights rather than visible or hidden
    source: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Refuse a setting ``weights`` that is no path; subclasses with checks of their own call this first."""
        check_file(self.name, "weights", getattr(self, "weights", None))

    def why_not(self, site: Site) -> str | None:
        """The reason why this method cannot serve a site, as one line of text, or None when it can."""
        if not among(site.role, self.roles):
            return f"{self.name} works on {', '.join(self.roles)} attention, this layer is {site.role} attention"
        if self.needs_grid and not site.layout.has_grid:
            return f"{self.name} needs a token grid (T, H, W), this sequence of {site.layout.length} tokens has none"
        if self.needs_grid and site.layout != site.key_layout:
            return f"{self.name} needs queries and keys from the same tokens, here their layouts differ"
        return None

    def refusal(self, site: Site, cache: PatchCache) -> str | None:
        """What :meth:`why_not` says of a site, asked once per kind of site and kept in the patch's cache."""
        kind = (site.role, site.heads, site.all_heads, site.layout, site.key_layout, site.finest, site.key_mask is None)
        return cache.verdict((self, *kind), lambda: self.why_not(site))

    def require(self, site: Site, cache: PatchCache | None = None) -> None:
        """Raise :class:`UnsupportedError` with the text of :meth:`why_not` when the site cannot be served."""
        reason = self.why_not(site) if cache is None else self.refusal(site, cache)
        if reason is not None:
            raise UnsupportedError(f"layer {site.name}: {reason}")

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """Attention of one site.

        Args:
            q: (B, Nq, H, D) queries after RoPE.
            k, v: (B, Nk, Hk, D) keys and values; Hk divides H.
            site: where and when.
            cache: plan storage of the patch.

        Returns:
            (B, Nq, H, D), or None to decline: then the model's own attention runs.
        """
        raise TypeError(f"{type(self).__name__} defines no attend()")

    def leaves(self, site: Site, cache: PatchCache) -> bool:
        """Whether a call for which :meth:`attend` gives None is one that the method's own settings leave to the model,
        as a schedule leaves some: such a call is not declined."""
        return False

    @property
    def tells_blocks(self) -> bool:
        """Whether the method reads whole blocks of keys, token by token, and tells which: see :meth:`attend_blocks`."""
        return False

    def attend_blocks(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> tuple[torch.Tensor, BlocksRead] | None:
        """:meth:`attend`, and which blocks it read. Only of methods with :attr:`tells_blocks`."""
        raise UnsupportedError(f"{self.describe()} does not tell which blocks of keys it reads")

    @property
    def adds(self) -> bool:
        """Whether :meth:`attend` gives a term to add to what computes the attention, instead of the whole output.

        Such a method shares its sites with one that computes the attention, or with the model's own attention.
        """
        return False

    @property
    def heads_apart(self) -> bool:
        """Whether the output of a head follows from that head's queries, keys and values alone, so that processes may
        share the heads of a layer (context parallelism). Where heads differ, :attr:`Site.first_head` tells which came.
        """
        return False

    @property
    def takes_pairs(self) -> bool:
        """Whether :meth:`attend_pairs` joins the method's choice with a mask of the model that differs between queries.
        Such calls are declined where it does not.
        """
        return False

    def attend_pairs(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, pairs: torch.Tensor
    ) -> torch.Tensor | None:
        """:meth:`attend` over the pairs that both the method and the model show: ``pairs`` bool (B|1, Nq, Nk), True =
        attend. Only of methods with :attr:`takes_pairs`."""
        raise UnsupportedError(f"{self.describe()} cannot be joined with a mask that differs between queries")

    @property
    def hides_grid(self) -> bool:
        """Whether keys of the grid stay hidden that the model's mask hides (padding of latents in a batch). Calls with
        such a mask are declined where they would not; hidden text is every method's to respect.
        """
        return False

    @property
    def every_grid(self) -> bool:
        """Whether the method's pattern holds between all grids of a sequence in which the grid stands several times
        (:attr:`TokenLayout.copies`). To other methods a copy is a segment like any other, which stays dense."""
        return False

    @property
    def needs_heads(self) -> bool:
        """Whether :meth:`install` needs a layer's number of heads before its first call."""
        return type(self).install is not Method.install

    def check_weights(self) -> None:
        """Raise UsageError where a patch of these settings is refused because nothing was trained."""

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Called once per attention module when a patch is made: makes weights (see ``PatchWeights``), sets hooks.

        Returns:
            What has to be undone when the patch is removed: objects with ``remove()``.
        """
        return ()

    def ready(self, cache: PatchCache) -> None:
        """Called once when the method is on all its sites: reads the file that a setting ``weights`` names."""
        weights = getattr(self, "weights", None)
        if weights is not None:
            from genkit.attention.weights import PatchWeights

            check_file(self.name, "weights", weights)
            PatchWeights.of(cache).load(weights, self.name, self.trained_with)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Changes to the denoiser's forward arguments, by name; a pure function, so that graphs can be traced."""
        return {}

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """Called before every denoiser call with its arguments as the pipeline gave them (in compiled graphs: those
        the family reads)."""

    def remarks(self, cache: PatchCache) -> list[str]:
        """What the user should know after calls under a patch, one line each: settings that had no effect, ..."""
        return []

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Computed and executed density at a site, or None when it depends on the data."""
        return None

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The visible pairs of a layout as a bool (N, N) tensor: those of any head, where heads differ. O(N^2) memory:
        for pictures, docs and tests."""
        raise UnsupportedError(f"{self.name} has no mask that is known without the queries and keys")

    def pairs(self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """The pairs that each head reads with these queries and keys (B, N, H, D), as bool (B, H, N, N). O(N^2) memory:
        for pictures, measurements and tests. Only for methods with ``by_data`` that choose pairs."""
        if not self.by_data:
            raise UnsupportedError(f"{self.name} does not choose pairs by queries and keys")
        import torch

        return self.pair_rows(q, k, site, cache, torch.arange(q.shape[1], device=q.device))

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """The keys that some queries read in a call, token by token, as bool (B|1, H|1, n, N). Means of several keys do
        not count as reading them. O(n N) memory and what the method itself needs to choose.

        Args:
            q, k: (B, N, H, D) of the whole call. queries: (n,) int64, which of them, on the device of ``q``.

        Raises:
            UnsupportedError: a method that reads no pairs of tokens (agents, states, means at several levels).
        """
        if self.by_data or getattr(self, "by_head", False):  # the mask is then not that of every head
            raise UnsupportedError(f"{self.name} does not tell which pairs each head reads")
        return self.mask_rows(site.layout, queries.cpu())[None, None].to(q.device)

    def read_rows(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """:meth:`pair_rows` of a call whose values are at hand: of methods that choose by values, what they really
        read; :meth:`pair_rows` takes keys in their place."""
        return self.pair_rows(q, k, site, cache, queries)

    def seen(self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """How much of every key every query reads with these queries and keys (1, N, H, D), as (N, N) from 0 to 1, the
        mean over heads. O(N^2) memory: for pictures and tests. Only for methods with ``by_data``."""
        return self.pairs(q, k, site, cache)[0].float().mean(0)

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """Rows of :meth:`mask` for some queries (n,) int64, as bool (n, N)."""
        return self.mask(layout)[queries]

    def shares(self, layout: TokenLayout, queries: torch.Tensor, heads: int) -> torch.Tensor:
        """The share of ``heads`` heads that see every key, for some queries (n,) int64, as float64 (n, N); 0 or 1 where
        all heads see the same."""
        return self.mask_rows(layout, queries).double()

    def details(self, layout: TokenLayout) -> str:
        """One line on what the settings come to on a concrete layout; empty when there is nothing to add."""
        return ""

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The schedule its authors use, as texts: ``{"steps": "12:", "layers": "1:"}``; empty = no advice."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, for reports and files."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def describe(self) -> str:
        """The method's name with the settings that differ from the defaults: ``radial(block_size=64)``."""
        changed = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                changed.append(f"{field.name}={value}")
        return f"{self.name}({', '.join(changed)})"


def check_used(method: Method, names: tuple[str, ...], used: bool, belongs: str) -> None:
    """Raise UsageError when a setting without effect was changed: ``names`` differ from their defaults and ``used`` is
    False; ``belongs`` says what they belong to."""
    if used:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(method)}
    for name in names:
        value = getattr(method, name)
        if value != defaults[name]:
            raise UsageError(
                f"{method.name}.{name}: got {value!r}, which has no effect here: it belongs to {belongs}; leave it "
                f"out, or ask for {belongs} too"
            )


def check_int(owner: str, name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise UsageError unless ``value`` is a whole number (not a bool) within [low, high]."""
    allowed = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise UsageError(explain(f"{owner}.{name}", value, allowed))


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_number(
    owner: str, name: str, value: object, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise UsageError unless ``value`` is a finite number (not a bool) within [low, high], or (low, high] with
    ``above``."""
    if not is_number(value) or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        most = "" if high == math.inf else f" and <= {high:g}" if above else f" to {high:g}"
        begin = f"a number > {low:g}" if above else f"a number from {low:g}" if most else f"a number >= {low:g}"
        raise UsageError(explain(f"{owner}.{name}", value, begin + most))


def check_amount(owner: str, name: str, value: object, low: int = 1) -> None:
    """Raise UsageError unless ``value`` is a whole number >= low, or a share of something: a number with a point from
    0 to 1, above 0 where ``low`` is."""
    share = isinstance(value, float) and 0 <= value <= 1 and (low == 0 or value > 0)
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not (share or whole):
        more = ", above 0" if low else ""
        raise UsageError(explain(f"{owner}.{name}", value, f"a whole number >= {low}, or a share from 0 to 1{more}"))


def check_file(owner: str, name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is the path of a file, as text or :class:`~pathlib.Path`, or None."""
    if value is not None and (not isinstance(value, (str, PurePath)) or not str(value).strip()):
        raise UsageError(explain(f"{owner}.{name}", value, "the path of a .safetensors file, or None"))


def check_flag(owner: str, name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise UsageError(explain(f"{owner}.{name}", value, "true or false"))


def check_choice(owner: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise UsageError unless ``value`` is one of ``choices``."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise UsageError(explain(f"{owner}.{name}", value, choices))
