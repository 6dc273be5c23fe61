"""The words every attention method shares: the site it runs at, its densities, its plan cache and the method itself."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.layout import TokenLayout

if TYPE_CHECKING:
    import torch

ROLES = ("self", "cross", "joint", "audio_self", "audio_to_video", "video_to_audio", "audio_cross")


@dataclass(frozen=True)
class Site:
    """One attention call: where in the model, when in the sampling loop, and how its tokens are laid out.

    Args:
        name: dotted module path, for instance ``"blocks.3.attn1"``.
        layer: index among the model's attention layers of this role, from 0; single blocks continue after double ones.
        layers: how many layers of this role the model has.
        role: one of :data:`ROLES`.
        heads: number of query heads.
        layout: layout of the queries.
        key_layout: layout of the keys; equal to ``layout`` for ``self`` and ``joint``.
        step: index in the sampling loop, from 0, or None outside a loop.
        steps: number of sampling steps, or None when unknown.
        branch: ``"cond"``, ``"uncond"``, ``"cond_uncond"`` ... as the pipeline announces it, or None.
        scale: softmax scale given by the model; None means ``1 / sqrt(head dim)``.
        key_mask: bool (B, Nk), True = attend; present only when the model passed a mask that hides something.
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

    @classmethod
    def of_layout(cls, layout: TokenLayout, role: str | None = None, heads: int = 1, **more: Any) -> Site:
        """A site outside any model, for tools and tests: role ``joint`` when the layout has text, else ``self``."""
        guessed = "joint" if layout.text_span else "self"
        fields = {"name": "site", "layer": 0, "layers": 1, "key_layout": layout, **more}
        return cls(role=role or guessed, heads=heads, layout=layout, **fields)


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
class Place:
    """One attention module a method is put on, as :meth:`Method.install` gets it.

    Args:
        name, role, layer, layers, heads: as in :class:`Site`.
        module: the model's attention module; methods may read its sizes and follow its parts by forward hooks.
        always: whether the schedule covers every step and branch at this layer.
    """

    name: str
    role: str
    layer: int
    layers: int
    heads: int
    module: Any = dataclasses.field(compare=False, repr=False)
    always: bool = True


_SEEN_TENSORS = 256
_CACHE_NUMBERS = itertools.count(1)
_CACHES: weakref.WeakValueDictionary[int, PatchCache] = weakref.WeakValueDictionary()


class Shelf:
    """Named places that hold plans for graphs being traced; nothing but attributes."""


class PatchCache:
    """Plans of one patch, built once per key. Lives on the patch object and dies with it.

    Every cache has a ``number`` under which :meth:`find` returns it while it lives. ``torch.compile`` needs this: a
    traced function may look a plan up through a number, but not through an object it is tracing.
    """

    def __init__(self, backend: str = "auto") -> None:
        """``backend`` is handed to the operator on every call."""
        import torch

        self.backend = backend
        self.device = torch.device("cpu")
        self.shelf = Shelf()
        self.aside = ""  # name of a method that makes denoiser calls for itself, outside of the sampling loop
        self._items: dict[Hashable, Any] = {}
        self._recent: dict[Hashable, Any] = {}
        self._seen: dict[Hashable, tuple[weakref.ref, Hashable]] = {}
        self._numbers: dict[Hashable, torch.Tensor] = {}
        self._lock = threading.RLock()
        self.number = next(_CACHE_NUMBERS)
        _CACHES[self.number] = self

    @staticmethod
    def find(number: int) -> PatchCache:
        """The living cache with this number; raises KeyError when its patch is gone."""
        return _CACHES[number]

    def get(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """The value stored under ``key``; the first call stores what ``build()`` returns."""
        with self._lock:
            if key not in self._items:
                self._items[key] = build()
            return self._items[key]

    def recent(self, key: Hashable, build: Callable[[], Any], most: int = 16) -> Any:
        """As :meth:`get`, for what varies from prompt to prompt: only the ``most`` last used values are kept."""
        with self._lock:
            value = self._recent.pop(key) if key in self._recent else build()
            self._recent[key] = value
            while len(self._recent) > most:
                del self._recent[next(iter(self._recent))]
            return value

    def of_tensor(self, tensor: torch.Tensor) -> Hashable:
        """A key for the content of a small tensor; the content is read once per tensor object and version."""
        import torch

        seen = (id(tensor), tensor._version, tuple(tensor.shape))
        known = self._seen.get(seen)
        if known is not None and known[0]() is tensor:
            return known[1]
        content = tensor.detach().to("cpu", torch.uint8).contiguous().numpy().tobytes()
        key = (tuple(tensor.shape), hashlib.blake2b(content, digest_size=16).digest())
        with self._lock:
            if len(self._seen) >= _SEEN_TENSORS:  # models make their masks anew in every call
                self._seen.clear()
            self._seen[seen] = (weakref.ref(tensor), key)
        return key

    def measure(self, key: Hashable, value: Callable[[], torch.Tensor]) -> None:
        """Remember a number that a method measured in its last call, as a scalar tensor; nothing in compiled graphs."""
        import torch

        if not torch.compiler.is_dynamo_compiling():
            self._numbers[key] = value().detach()

    def measured(self, key: Hashable) -> float | None:
        """The number last remembered under ``key``, or None."""
        return float(self._numbers[key]) if key in self._numbers else None

    def clear(self) -> None:
        """Forget every stored plan."""
        with self._lock:
            self._items.clear()
            self._recent.clear()

    def __len__(self) -> int:
        return len(self._items)


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
    source: ClassVar[str] = ""

    def why_not(self, site: Site) -> str | None:
        """The reason why this method cannot serve a site, as one line of text, or None when it can."""
        if site.role not in self.roles:
            return f"{self.name} works on {', '.join(self.roles)} attention, this layer is {site.role} attention"
        if self.needs_grid and not site.layout.has_grid:
            return f"{self.name} needs a token grid (T, H, W), this sequence of {site.layout.length} tokens has none"
        if self.needs_grid and site.layout != site.key_layout:
            return f"{self.name} needs queries and keys from the same tokens, here their layouts differ"
        return None

    def require(self, site: Site) -> None:
        """Raise :class:`UnsupportedError` with the text of :meth:`why_not` when the site cannot be served."""
        reason = self.why_not(site)
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

    @property
    def adds(self) -> bool:
        """Whether :meth:`attend` gives a term to add to what computes the attention, instead of the whole output.

        Such a method shares its sites with one that computes the attention, or with the model's own attention.
        """
        return False

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Called once per attention module when a patch is made: makes weights (see ``PatchWeights``), sets hooks.

        Returns:
            What has to be undone when the patch is removed: objects with ``remove()``.
        """
        return ()

    def ready(self, cache: PatchCache) -> None:
        """Called once when the method is on all its sites: the time to read weights from a file."""

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Changes to the denoiser's forward arguments, by name; a pure function, so that graphs can be traced."""
        return {}

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """Called before every denoiser call with its arguments as the pipeline gave them (in compiled graphs: those
        the family reads)."""

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Computed and executed density at a site, or None when it depends on the data."""
        return None

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The visible pairs of a layout as a bool (N, N) tensor. O(N^2) memory: for pictures, docs and tests."""
        raise UnsupportedError(f"{self.name} has no mask that is known without the queries and keys")

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """Rows of :meth:`mask` for some queries (n,) int64, as bool (n, N)."""
        return self.mask(layout)[queries]

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


def check_int(owner: str, name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise UsageError unless ``value`` is a whole number (not a bool) within [low, high]."""
    allowed = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise UsageError(explain(f"{owner}.{name}", value, allowed))


def check_choice(owner: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise UsageError unless ``value`` is one of ``choices``."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise UsageError(explain(f"{owner}.{name}", value, choices))
