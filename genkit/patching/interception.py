"""The one place where attention calls are caught: a stack of running modules, and pass-throughs on the functions.

Forward hooks on attention modules push and pop a :class:`RunningModule` on a stack of their thread. While at least one
patch exists, every Diffusers attention backend and ``torch.nn.functional.scaled_dot_product_attention`` carry a
pass-through that looks at the top of that stack: nothing there, straight on to the original; a running module, on to
its layer.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
import torch.overrides
from torch.compiler import is_compiling

from genkit.patching import head_split
from genkit.patching.head_split import HeadSplit

SDPA = "scaled_dot_product_attention"
_NO_WINDOWS = (None, (-1, -1))


class Layer(Protocol):
    """Whoever takes the attention calls of a module."""

    def attend(self, running: RunningModule, q: Any, k: Any, v: Any, call: Call) -> torch.Tensor:
        """Serve one attention call; (B, N, H, D) in and out."""


class RunningModule:
    """One running forward of one attention module.

    Args:
        layer: what the module's attention goes to.
        frame: the Python frame of the module call, or None while tracing. It counts only while that call is still on
            the stack: an interrupt (which runs no hook) must not leave anything behind for the next model.

    ``calls`` counts its attention calls; ``serving`` is set while one of them is served: attention functions that a
    method or the model's own attention calls then run untouched.
    """

    __slots__ = ("layer", "frame", "calls", "serving")

    def __init__(self, layer: Layer, frame: FrameType | None):
        self.layer = layer
        self.frame = frame
        self.calls = 0
        self.serving = False


class Call:
    """One attention call as the model makes it.

    Args:
        origin: ``SDPA`` or the name of a Diffusers backend.
        mask: attention mask as given, a tensor or a FlexAttention BlockMask; see :mod:`genkit.patching.masks`.
        dropout: dropout probability.
        causal: whether a causal mask is asked for.
        scale: softmax scale or None.
        grouped: whether keys and values may have fewer heads.
        obstacle: a reason why no method can serve this call, or None.
        own: the model's own attention on (B, N, H, D) tensors; ``attn_mask=`` gives it another mask, for a part of the
            queries.
        split: how heads are shared among processes; None = this one has all. As the model makes the call, every
            process has a part of the sequence instead: see :mod:`genkit.patching.ulysses`.
    """

    __slots__ = ("origin", "mask", "dropout", "causal", "scale", "grouped", "obstacle", "own", "split")

    def __init__(
        self,
        origin: str,
        mask: Any,
        dropout: float,
        causal: bool,
        scale: float | None,
        grouped: bool,
        obstacle: str | None,
        own: Callable[..., torch.Tensor],
        split: HeadSplit | None = None,
    ):
        self.origin = origin
        self.mask = mask
        self.dropout = dropout
        self.causal = causal
        self.scale = scale
        self.grouped = grouped
        self.obstacle = obstacle
        self.own = own
        self.split = split

    def of_whole(self, mask: Any) -> Call:
        """The same call on whole sequences with the heads of this process, under a mask of the whole sequence."""
        changes: dict[str, Any] = {"_parallel_config": None}
        if mask is not None:
            changes["attn_mask"] = mask

        def own(q: Any, k: Any, v: Any, **more: Any) -> torch.Tensor:
            return self.own(q, k, v, **{**changes, **more})

        return Call(
            self.origin, mask, self.dropout, self.causal, self.scale, self.grouped, self.obstacle, own, self.split
        )


class _Local(threading.local):
    def __init__(self) -> None:
        self.modules: list[RunningModule | None] = []


#: ``modules`` is the stack of the thread that asks.
LOCAL = _Local()


def push(running: RunningModule | None) -> None:
    """Enter an attention module, or with None a region where attention is the caller's own business."""
    LOCAL.modules.append(running)


def pop(layer: Layer | None) -> RunningModule | None:
    """Leave what was pushed for ``layer``; returns it, or None if it is not on top."""
    modules = LOCAL.modules
    if not modules:
        return None
    top = modules[-1]
    if (top.layer if top is not None else None) is not layer:
        return None
    modules.pop()
    if top is not None:
        top.frame = None  # a frame that can reach this object would live, with its tensors, until the next collection
    return top


def depth() -> int:
    """How many running modules this thread holds; 0 outside of attention modules."""
    return len(LOCAL.modules)


def current() -> RunningModule | None:
    """The attention module that is running on this thread, stale ones dropped."""
    modules = LOCAL.modules
    while modules:
        top = modules[-1]
        if top is None or top.serving:
            return None
        if is_compiling() or top.frame is None:
            return top
        wanted, frame = top.frame, sys._getframe(1)
        while frame is not None:
            if frame is wanted:
                return top
            frame = frame.f_back
        modules.pop()
    return None


class own_attention:
    """Context in which attention functions run untouched: for the original call and for a method's own dense calls."""

    def __enter__(self) -> None:
        self.depth = len(LOCAL.modules)
        LOCAL.modules.append(None)

    def __exit__(self, *_: object) -> None:
        del LOCAL.modules[self.depth :]


class Interception:
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

        # A function somebody else put over ours stays: without running modules it leads straight through.
        for name, function in list(_AttentionBackendRegistry._backends.items()):
            if function is self._wrappers.get(name.value):
                _AttentionBackendRegistry._backends[name] = self._originals[name.value]
        if functional.scaled_dot_product_attention is self._wrappers.get(SDPA):
            functional.scaled_dot_product_attention = self._originals[SDPA]
        self._wrappers.clear()


INTERCEPTION = Interception()


def _pass_through_sdpa(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def scaled_dot_product_attention(*args, **rest):
        if torch._C._len_torch_function_stack() and not is_compiling():
            # A mode that knows torch's function (perturbed guidance) must see this one in its place.
            tensors = (*args, *rest.values())
            return torch.overrides.handle_torch_function(scaled_dot_product_attention, tensors, *args, **rest)
        running = current() if INTERCEPTION.epoch else None
        return original(*args, **rest) if running is None else gate(running, *args, **rest)

    def gate(running, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
        if query.ndim != 4:
            return original(query, key, value, attn_mask, dropout_p, is_causal, **rest)

        def own(q, k, v, attn_mask=attn_mask):
            # The model's own call on (B, N, H, D) tensors, for declined calls and what a method leaves out.
            return original(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask, dropout_p, is_causal, **rest
            ).transpose(1, 2)

        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        call = Call(SDPA, attn_mask, dropout_p, is_causal, rest.get("scale"), rest.get("enable_gqa", False), None, own)
        return running.layer.attend(running, q, k, v, call).transpose(1, 2)

    return scaled_dot_product_attention


def _perturbed() -> bool:
    """Whether Diffusers' perturbed guidance puts the values in the place of attention in this pass."""
    if is_compiling():
        return False
    from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode

    modes = torch.overrides._get_current_function_mode_stack()
    return any(isinstance(mode, AttentionScoreSkipFunctionMode) for mode in modes)


def _pass_through_backend(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backend(query, key, value, **rest):
        running = current() if INTERCEPTION.epoch and query.ndim == 4 else None
        if running is None:
            return original(query=query, key=key, value=value, **rest)

        def own(q, k, v, **changes):
            return original(query=q, key=k, value=v, **({**rest, **changes} if changes else rest))

        asked = rest.get
        call = Call(
            name,
            asked("attn_mask"),
            asked("dropout_p", 0.0),
            asked("is_causal", False),
            asked("scale"),
            asked("enable_gqa", False),
            _backend_obstacle(rest),
            own,
        )
        parallel = asked("_parallel_config")
        if parallel is not None and call.obstacle is None:
            call.obstacle = head_split.why_not(parallel, query, key)
            if call.obstacle is None:
                call.split = HeadSplit(parallel.context_parallel_config)
        return running.layer.attend(running, query, key, value, call)

    return backend


def _backend_obstacle(rest: dict[str, Any]) -> str | None:
    """What no method can do of what a caller asks a Diffusers backend for, or None."""
    if rest.get("return_lse"):
        return "the caller asks for the log-sum-exp too"
    if rest.get("window_size") not in _NO_WINDOWS:
        return f"the caller asks the backend for windows of {rest['window_size']}, which no method would keep"
    if torch._C._len_torch_function_stack() and _perturbed():
        return "a guidance skips attention in this pass (perturbed attention)"
    mask = rest.get("attn_mask")
    if mask is not None and not isinstance(mask, torch.Tensor):
        kind = type(mask).__name__
        return f"its attention mask is a {kind}, the model's own block-sparse attention, which stays as it is"
    return None


def calling_frame() -> FrameType | None:
    """The frame of the module call that runs the hook which calls this; None while tracing."""
    return None if is_compiling() else sys._getframe(2)
