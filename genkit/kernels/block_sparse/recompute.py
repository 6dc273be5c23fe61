"""Gradients by running a differentiable function again, usable inside a torch operator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genkit.kernels.plan.bias import Bias, flatten, trainable, unflatten

Attention = Callable[..., tuple[Tensor, Tensor]]


def gradients(
    attention: Attention,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Sequence[Bias],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and the trainable bias tables of ``attention(q, k, v, bias) -> (out, lse)``.

    Autograd is switched off below a torch operator, by thread. The function therefore runs in a thread of its own, on
    the caller's device and stream.
    """
    kinds, tables = flatten(bias)
    flags = trainable(kinds)
    result: list = []

    def work() -> None:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        leaves = [t.detach().requires_grad_() if flag else t for t, flag in zip(tables, flags, strict=True)]
        out, lse = attention(*inputs, unflatten(kinds, leaves))
        wanted = [*inputs, *(t for t, flag in zip(leaves, flags, strict=True) if flag)]
        found = torch.autograd.grad(
            [out] if grad_lse is None else [out, lse],
            wanted,
            [grad_out] if grad_lse is None else [grad_out, grad_lse],
            allow_unused=True,
            materialize_grads=True,
        )
        result.extend(x.contiguous() for x in found)

    _in_own_thread(work, q.device)
    dq, dk, dv, *rest = result
    return dq, dk, dv, rest


def _in_own_thread(work: Callable[[], None], device: torch.device) -> None:
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    raised: list[BaseException] = []

    def run() -> None:
        try:
            if stream is None:
                work()
            else:
                with torch.cuda.stream(stream):
                    work()
        except BaseException as error:  # handed to the caller below, whatever it is
            raised.append(error)

    thread = threading.Thread(target=run, name="genkit-gradients")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
