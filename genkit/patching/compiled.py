"""The gate inside torch.compile: opaque operators, so that one graph serves every step, layout and schedule.

A traced graph must not freeze what changes from call to call (step, branch, layout, plans). So the model-level hook and
every gate become operators that run as plain Python when the graph runs and look up their state by number.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from genkit.errors import UnsupportedError
from genkit.families.base import Family
from genkit.patching import interception
from genkit.patching.interception import INTERCEPTION, SDPA, Call

if TYPE_CHECKING:
    from torch import nn

# What the operators call, by number: patched models (observe) and patched layers (serve).
_ENROLLED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)
_PATCHES: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_SEPARATOR = "|"
_PLAIN = (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())

_OBSERVE = (
    "(Tensor sample, Tensor[] tensors, SymInt[] numbers, str tensor_names, str number_names, SymInt layer_model, "
    "bool training) -> Tensor"
)
_GATE_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? mask, float dropout, bool causal, float? scale, bool grouped, str origin, "
    "SymInt layer, SymInt index"
)


class Observer(Protocol):
    """A patched model, as far as graphs need it."""

    family: Family
    number: int
    names: tuple[str, ...]

    def observe(self, given: Mapping[str, Any], training: bool) -> None:
        """Take in the arguments of one call."""


def enroll(whom: Any) -> int:
    """A number under which the operators find a patched model or layer while it lives."""
    number = next(_NUMBERS)
    _ENROLLED[number] = whom
    return number


def _find(number: int) -> Any:
    whom = _ENROLLED.get(number)
    if whom is None:
        raise UnsupportedError(
            "a compiled graph outlived the patch it was traced with; call torch._dynamo.reset() and compile again"
        )
    return whom


def forget_stale_graphs(model: nn.Module) -> None:
    """Before every fourth patch of a model: drop the graphs traced of it.

    Graphs of earlier patches can never run again, but they count towards torch.compile's limit of graphs per function.
    """
    _PATCHES[model] = _PATCHES.get(model, 0) + 1
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or _PATCHES[model] % 4:
        return
    functions = {type(module).forward for module in model.modules()}
    if any(module._compiled_call_impl is not None for module in model.modules()):
        functions.add(torch.nn.Module._call_impl)
    for function in functions:
        while function is not None:
            if hasattr(function, "__code__"):
                dynamo.reset_code(function.__code__)
            function = getattr(function, "__wrapped__", None)


def observe(
    model: Observer, given: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], training: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Traced form of ``observe``: hands the sample through, so that the operator runs before everything else."""
    tensors: list[torch.Tensor] = []
    numbers: list[int] = []
    tensor_names: list[str] = []
    number_names: list[str] = []
    for name in model.family.reads:
        _pack(name, given.get(name), tensors, tensor_names, numbers, number_names)
    clock = model.family.timestep
    timestep = given.get(clock)
    if isinstance(timestep, (int, float)):
        timestep = torch.full((1,), float(timestep))
    _pack(clock, timestep, tensors, tensor_names, numbers, number_names)
    name = model.family.sample
    sample = torch.ops.genkit.observe(
        given[name],
        tensors,
        numbers,
        _SEPARATOR.join(tensor_names),
        _SEPARATOR.join(number_names),
        model.number,
        training,
    )
    if name in kwargs:
        return args, {**kwargs, name: sample}
    place = model.names.index(name)
    return (*args[:place], sample, *args[place + 1 :]), kwargs


def _pack(name: str, value: Any, tensors: list, tensor_names: list, numbers: list, number_names: list) -> None:
    """Flatten one argument; lists and mappings get dotted names, texts are left out (operators take none)."""
    if value is None:
        return
    if isinstance(value, float):
        value = torch.tensor(value)  # the operator's numbers are whole
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        tensor_names.append(name)
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            _pack(f"{name}.{place}", part, tensors, tensor_names, numbers, number_names)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if not isinstance(part, str):
                _pack(f"{name}.{key}", part, tensors, tensor_names, numbers, number_names)
    else:
        numbers.append(value)
        number_names.append(name)


def _unpack(names: str, values: list[Any], into: dict[str, Any]) -> None:
    for name, value in zip(names.split(_SEPARATOR) if names else [], values, strict=True):
        first, *places = name.split(".")
        if not places:
            into[first] = value
            continue
        level = into.setdefault(first, [] if places[0].isdigit() else {})
        for place, below in zip(places[:-1], places[1:], strict=True):
            empty: Any = [] if below.isdigit() else {}
            if isinstance(level, dict):
                level = level.setdefault(place, empty)
                continue
            while len(level) <= int(place):
                level.append(empty)
            level = level[int(place)]
        if isinstance(level, dict):
            level[places[-1]] = value
        else:
            level.append(value)


def attend(number: int, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call) -> torch.Tensor:
    """Traced form of a patched layer's ``attend``."""
    if call.obstacle is not None:
        interception.push(None)
        out = call.own(q, k, v)
        interception.pop(None)
        return out
    return torch.ops.genkit.gate(
        q, k, v, call.mask, float(call.dropout), call.causal, call.scale, bool(call.grouped), call.origin, number, index
    )


def _own_attention(origin: str, facts: dict[str, Any]) -> Any:
    """The model's own attention on (B, N, H, D) tensors, as an untraced call would run it."""
    original = INTERCEPTION.original(origin)
    if origin == SDPA:
        return lambda q, k, v, **changes: original(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **{**facts, **changes}
        ).transpose(1, 2)
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    accepted = _AttentionBackendRegistry._supported_arg_names[AttentionBackendName(origin)]
    taken = {n: x for n, x in facts.items() if n in accepted}
    return lambda q, k, v, **changes: original(query=q, key=k, value=v, **{**taken, **changes})


def _serve(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
    origin: str,
    layer: int,
    index: int,
    count: bool,
) -> torch.Tensor:
    facts = {"attn_mask": mask, "dropout_p": dropout, "is_causal": causal, "scale": scale, "enable_gqa": grouped}
    call = Call(origin, mask, dropout, causal, scale, grouped, None, _own_attention(origin, facts))
    with interception.own_attention():
        return _find(layer).serve(index, q, k, v, call, count)


@torch.library.custom_op("genkit::observe", mutates_args=(), schema=_OBSERVE)
def _observe(sample, tensors, numbers, tensor_names, number_names, model, training):
    given: dict[str, Any] = {}
    _unpack(tensor_names, tensors, given)
    _unpack(number_names, numbers, given)
    _find(model).observe(given, training)
    return sample.clone()


@_observe.register_fake
def _observe_fake(sample, tensors, numbers, tensor_names, number_names, model, training):
    return torch.empty_like(sample)


def _count_tensors(ctx, inputs, output):
    ctx.tensors, ctx.numbers = len(inputs[1]), len(inputs[2])


def _observe_backward(ctx, grad):
    # An empty list counts as one of tensors, whose gradients are a list too.
    return grad, [None] * ctx.tensors, None if ctx.numbers else [], None, None, None, None


_observe.register_autograd(_observe_backward, setup_context=_count_tensors)


@torch.library.custom_op("genkit::gate", mutates_args=(), schema=f"({_GATE_ARGUMENTS}) -> Tensor")
def _gate(q, k, v, mask, dropout, causal, scale, grouped, origin, layer, index):
    out = _serve(q, k, v, mask, dropout, causal, scale, grouped, origin, layer, index, True).contiguous()
    storages = {x.untyped_storage().data_ptr() for x in (q, k, v)}
    return out.clone() if out.untyped_storage().data_ptr() in storages else out


@_gate.register_fake
def _gate_fake(q, k, v, mask, dropout, causal, scale, grouped, origin, layer, index):
    return q.new_empty((*q.shape[:3], v.shape[3]))


@torch.library.custom_op(
    "genkit::gate_backward", mutates_args=(), schema=f"(Tensor grad, {_GATE_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)
def _gate_backward(grad, q, k, v, mask, dropout, causal, scale, grouped, origin, layer, index):
    # Operators run below autograd; computing the method again with gradients has to step above it.
    with torch._C._ForceDispatchKeyGuard(*_PLAIN), torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = _serve(*inputs, mask, dropout, causal, scale, grouped, origin, layer, index, False)
        grads = torch.autograd.grad(out, inputs, grad, allow_unused=True)
    return tuple(
        torch.zeros_like(x) if g is None else g.contiguous().clone() for g, x in zip(grads, (q, k, v), strict=True)
    )


@_gate_backward.register_fake
def _gate_backward_fake(grad, q, k, v, mask, dropout, causal, scale, grouped, origin, layer, index):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save_for_backward(ctx, inputs, output):
    q, k, v, mask, *rest = inputs
    ctx.save_for_backward(q, k, v, mask)
    ctx.rest = rest


def _backward(ctx, grad):
    q, k, v, mask = ctx.saved_tensors
    grads = torch.ops.genkit.gate_backward(grad, q, k, v, mask, *ctx.rest)
    return (*grads, *[None] * (1 + len(ctx.rest)))


_gate.register_autograd(_backward, setup_context=_save_for_backward)
