"""The one place where attention calls are caught: records of where we are, and pass-throughs on the functions.

Forward hooks on attention modules push and pop a :class:`Record` on a stack of their thread. While at least one patch
exists, every Diffusers attention backend and ``torch.nn.functional.scaled_dot_product_attention`` carry a pass-through
that looks at the top of that stack: no record, straight on to the original; a record, on to its slot.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional

if TYPE_CHECKING:
    from genkit.patching.slot import Slot

SDPA = "scaled_dot_product_attention"


class Record:
    """One running forward of one attention module.

    Args:
        slot: what the module's attention goes to.
        frame: the Python frame of the module call, or None while tracing. A record counts only while that call is
            still on the stack: an interrupt (which runs no hook) must not leave a record behind for the next model.
    """

    __slots__ = ("slot", "frame", "calls")

    def __init__(self, slot: Slot, frame: FrameType | None):
        self.slot = slot
        self.frame = frame
        self.calls = 0


class Call:
    """One attention call as the model makes it.

    Args:
        origin: ``SDPA`` or the name of a Diffusers backend.
        mask: attention mask as given; see :mod:`genkit.patching.masks`.
        dropout: dropout probability.
        causal: whether a causal mask is asked for.
        scale: softmax scale or None.
        grouped: whether keys and values may have fewer heads.
        obstacle: a reason why no method can serve this call, or None.
        own: the model's own attention on (B, N, H, D) tensors.
    """

    __slots__ = ("origin", "mask", "dropout", "causal", "scale", "grouped", "obstacle", "own")

    def __init__(
        self,
        origin: str,
        mask: torch.Tensor | None,
        dropout: float,
        causal: bool,
        scale: float | None,
        grouped: bool,
        obstacle: str | None,
        own: Callable[..., torch.Tensor],
    ):
        self.origin = origin
        self.mask = mask
        self.dropout = dropout
        self.causal = causal
        self.scale = scale
        self.grouped = grouped
        self.obstacle = obstacle
        self.own = own


class _Local(threading.local):
    def __init__(self) -> None:
        self.records: list[Record | None] = []


_LOCAL = _Local()


def push(record: Record | None) -> None:
    """Enter an attention module, or with None a region where attention is the caller's own business."""
    _LOCAL.records.append(record)


def pop(slot: Slot | None) -> Record | None:
    """Leave what was pushed for ``slot``; returns the record, or None if it is not on top."""
    records = _LOCAL.records
    if not records:
        return None
    top = records[-1]
    if (top.slot if top is not None else None) is not slot:
        return None
    records.pop()
    if top is not None:
        top.frame = (
            None  # a frame that can reach its own record would live, with its tensors, until the next collection
        )
    return top


def depth() -> int:
    """How many records this thread holds; 0 outside of attention modules."""
    return len(_LOCAL.records)


def _on_stack(wanted: FrameType) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame is wanted:
            return True
        frame = frame.f_back
    return False


def current() -> Record | None:
    """The record of the attention module that is running on this thread, stale ones dropped."""
    records = _LOCAL.records
    while records:
        top = records[-1]
        if torch.compiler.is_compiling() or top is None or top.frame is None or _on_stack(top.frame):
            return top
        records.pop()
    return None


class own_attention:
    """Context in which attention functions run untouched: for the original call and for a method's own dense calls."""

    def __enter__(self) -> None:
        self.depth = len(_LOCAL.records)
        _LOCAL.records.append(None)

    def __exit__(self, *_: object) -> None:
        del _LOCAL.records[self.depth :]


class Seam:
    """The process-wide pass-throughs, present while somebody holds them.

    ``epoch`` changes with every patch and removal. The pass-throughs read it, so that torch.compile traces a model
    again after it was patched or restored.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders = 0
        self._originals: dict[Any, Callable[..., Any]] = {}
        self._wrappers: dict[Any, Callable[..., Any]] = {}
        self._count = 0
        self.epoch = "0"

    @property
    def installed(self) -> bool:
        """Whether the pass-throughs are in place."""
        return bool(self._wrappers)

    def hold(self) -> None:
        """Put the pass-throughs in place, or keep them for one more holder."""
        with self._lock:
            self._holders += 1
            self.touch()
            self._install()

    def release(self) -> None:
        """One holder less; the last one takes the pass-throughs away."""
        with self._lock:
            self._holders -= 1
            self.touch()
            if self._holders == 0:
                self._uninstall()

    def touch(self) -> None:
        """Make compiled models trace again."""
        self._count += 1
        self.epoch = str(self._count)

    def original(self, key: str) -> Callable[..., Any]:
        """The untouched function behind a pass-through: ``SDPA`` or the value of a Diffusers backend name."""
        return self._originals[key]

    def _install(self) -> None:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        for name, function in list(_AttentionBackendRegistry._backends.items()):
            if function is not self._wrappers.get(name.value):
                self._originals[name.value] = function
                self._wrappers[name.value] = _pass_through_backend(name.value, function)
                _AttentionBackendRegistry._backends[name] = self._wrappers[name.value]
        if functional.scaled_dot_product_attention is not self._wrappers.get(SDPA):
            self._originals[SDPA] = functional.scaled_dot_product_attention
            self._wrappers[SDPA] = _pass_through_sdpa(self._originals[SDPA])
            functional.scaled_dot_product_attention = self._wrappers[SDPA]

    def _uninstall(self) -> None:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        # A function somebody else put over ours stays: without records it leads straight through.
        for name, function in list(_AttentionBackendRegistry._backends.items()):
            if function is self._wrappers.get(name.value):
                _AttentionBackendRegistry._backends[name] = self._originals[name.value]
        if functional.scaled_dot_product_attention is self._wrappers.get(SDPA):
            functional.scaled_dot_product_attention = self._originals[SDPA]
        self._wrappers.clear()


SEAM = Seam()


def _pass_through_sdpa(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
        record = current() if SEAM.epoch and query.ndim == 4 else None
        if record is None:
            return original(query, key, value, attn_mask, dropout_p, is_causal, **rest)

        def own(q, k, v):
            # The model's own call on (B, N, H, D) tensors, for declined calls and uncovered heads.
            return original(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask, dropout_p, is_causal, **rest
            ).transpose(1, 2)

        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        call = Call(SDPA, attn_mask, dropout_p, is_causal, rest.get("scale"), rest.get("enable_gqa", False), None, own)
        return record.slot.attend(record, q, k, v, call).transpose(1, 2)

    return scaled_dot_product_attention


def _pass_through_backend(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backend(query, key, value, **rest):
        record = current() if SEAM.epoch and query.ndim == 4 else None
        if record is None:
            return original(query=query, key=key, value=value, **rest)

        def own(q, k, v):
            return original(query=q, key=k, value=v, **rest)

        obstacle = None
        if rest.get("return_lse"):
            obstacle = "the caller asks for the log-sum-exp too"
        elif rest.get("_parallel_config") is not None:
            obstacle = "context parallelism splits the sequence over devices"
        call = Call(
            name,
            rest.get("attn_mask"),
            rest.get("dropout_p", 0.0),
            rest.get("is_causal", False),
            rest.get("scale"),
            rest.get("enable_gqa", False),
            obstacle,
            own,
        )
        return record.slot.attend(record, query, key, value, call)

    return backend


def calling_frame() -> FrameType | None:
    """The frame of the module call that runs the hook which calls this; None while tracing."""
    return None if torch.compiler.is_compiling() else sys._getframe(2)
