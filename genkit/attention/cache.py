"""What a patch keeps between calls: plans and tables, built once, and numbers its methods measured."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SEEN_TENSORS = 256


class PatchCache:
    """Plans of one patch, built once per key. Lives on the patch object and dies with it."""

    def __init__(self, backend: str = "auto") -> None:
        """``backend`` is handed to the operator on every call."""
        import torch

        self.backend = backend
        self.device = torch.device("cpu")
        self.aside = ""  # name of a method that makes denoiser calls for itself, outside of the sampling loop
        self._items: dict[Hashable, Any] = {}
        self._recent: dict[Hashable, Any] = {}
        self._held: dict[Hashable, Any] = {}
        self._seen: dict[Hashable, tuple[weakref.ref, Hashable]] = {}
        self._verdicts: dict[Hashable, str | None] = {}
        self._numbers: dict[Hashable, torch.Tensor] = {}
        self._lock = threading.RLock()

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

    def hold(self, key: Hashable, value: Any) -> None:
        """Store what a later call of the same layer needs; replaced by the next value of the key, never dropped."""
        with self._lock:
            self._held[key] = value

    def held(self, key: Hashable, default: Any = None) -> Any:
        """What :meth:`hold` stored last."""
        return self._held.get(key, default)

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

    def verdict(self, key: Hashable, ask: Callable[[], str | None]) -> str | None:
        """A method's answer to whether it can serve a kind of site; asked once."""
        if key not in self._verdicts:
            self._verdicts[key] = ask()
        return self._verdicts[key]

    def measure(self, key: Hashable, value: Callable[[], torch.Tensor]) -> None:
        """Remember a number that a method measured in its last call, as a scalar tensor."""
        self._numbers[key] = value().detach()

    def measured(self, key: Hashable) -> float | None:
        """The number last remembered under ``key``, or None."""
        return float(self._numbers[key]) if key in self._numbers else None

    def clear(self) -> None:
        """Forget every stored plan."""
        with self._lock:
            self._items.clear()
            self._recent.clear()
            self._held.clear()

    def __len__(self) -> int:
        return len(self._items)
