"""Running the steps of a call, and their backward pass: every step is computed again from its pieces and its state.

Kept for the backward pass: the inputs and one state before every step, a few hundredths of the inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genkit.kernels.linear_state.impl.chunked.steps import State, Step, program
from genkit.kernels.linear_state.problem import TENSORS, Features
from genkit.kernels.linear_state.state import LinearState


def attention(x: Features, start: LinearState) -> tuple[Tensor, LinearState]:
    """Output and final state, see the api."""
    count = start.count + x.k.shape[1]
    if torch.compiler.is_compiling():  # the compiler makes a backward pass of its own
        out, (kv, z), _ = _run(x, program(x), (start.kv, start.z), keep=False)
    else:
        out, kv, z = _Chain.apply(x, *x.tensors(), start.kv, start.z)
    return out, LinearState(kv, z, count, x.softmax)


def _run(x: Features, steps: list[Step], state: State, keep: bool) -> tuple[Tensor, State, list[State]]:
    outs, states = [], []
    for step in steps:
        if keep:
            states.append(state)
        out, state = step.run(step.piece(x), state)
        if out is not None:
            outs.append(out)
    return torch.cat(outs, 1), state, states


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Features, *tensors: Any) -> tuple[Tensor, ...]:
        inputs, start = tensors[: len(TENSORS)], tensors[len(TENSORS) :]
        needed = any(ctx.needs_input_grad)
        out, (kv, z), states = _run(x, program(x), (start[0], start[1]), keep=needed)
        ctx.form, ctx.owners = x.form, x.owners
        ctx.save_for_backward(*inputs, *(each for state in states for each in state))
        # a state that no step changed is the caller's own tensor
        return out, *(new.clone() if new is old else new for new, old in zip((kv, z), start, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x = Features.again(saved[: len(TENSORS)], ctx.owners, *ctx.form)
        flat = saved[len(TENSORS) :]
        states = [(flat[at], flat[at + 1]) for at in range(0, len(flat), 2)]
        sums = {
            name: torch.zeros(getattr(x, name).shape, dtype=x.wide, device=x.q.device)
            for name, needed in zip(TENSORS, ctx.needs_input_grad[1:], strict=False)
            if needed
        }
        grad_out = grads[0]
        grad_state: tuple[Tensor, ...] = (grads[1], grads[2])
        end = grad_out.shape[1]
        for step, state in zip(reversed(program(x)), reversed(states), strict=True):
            with torch.enable_grad():
                piece = {
                    name: part if part is None else part.detach().requires_grad_(ctx.owners[name] in sums)
                    for name, part in step.piece(x).items()
                }
                leaves = {name: part for name, part in piece.items() if part is not None and part.requires_grad}
                inside = tuple(each.detach().requires_grad_() for each in state)
                out, after = step.run(piece, inside)
            results, given = list(after), list(grad_state)
            if out is not None:
                results.append(out)
                given.append(grad_out[:, end - out.shape[1] : end])
                end -= out.shape[1]
            moving = [(y, g) for y, g in zip(results, given, strict=True) if y.requires_grad]
            found = torch.autograd.grad(
                [y for y, _ in moving], [*leaves.values(), *inside], [g for _, g in moving], allow_unused=True
            )
            for name, grad in zip(leaves, found[: len(leaves)], strict=True):
                if grad is not None:
                    step.part(name, sums[ctx.owners[name]]).add_(grad)
            grad_state = tuple(
                torch.zeros_like(old) if grad is None else grad
                for old, grad in zip(state, found[len(leaves) :], strict=True)
            )
        inputs = tuple(sums[name].to(getattr(x, name).dtype) if name in sums else None for name in TENSORS)
        starts = tuple(
            grad if needed else None for grad, needed in zip(grad_state, ctx.needs_input_grad[-2:], strict=True)
        )
        return None, *inputs, *starts
