"""Token routing in training (TREAD): a random part of the tokens skips a span of blocks.

Hooks on the blocks gather tokens, rotary rows and mask columns on the way in, and put the tokens back at the end of
the span. A pass that :meth:`TokenRoute.next` did not announce (held-out loss, samples) goes through untouched.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from genkit.errors import UnsupportedError, counted
from genkit.families.base import Family
from genkit.families.lookup import diffusers_class, family_of
from genkit.families.stack import BlockStack
from genkit.patching.patched_model import PatchedModel
from genkit.training.lora.route import Route


class TokenRoute:
    """A route on a denoiser.

    All samples of a micro-batch keep the same tokens: rotary tables of these models have no batch axis.

    Args:
        model: the denoiser. route: which blocks are skipped, and by how many tokens.

    Raises:
        UnsupportedError: a model whose record does not tell how tokens go through its blocks.
        UsageError: blocks that are not there, or get other tokens.

    Source: TREAD, arXiv 2501.04765; as in Motif-Video 2B, arXiv 2604.16503.
    """

    def __init__(self, model: nn.Module, route: Route):
        self.model, self.route = model, route
        self.family, self.stack = _described(model)
        self.blocks = dict(list(_blocks(model, self.stack).items())[slice(*span_of(model, route))])
        self._parts = [_Part(self.stack, block, self.family.text == "first") for block in self.blocks.values()]
        self._next: torch.Generator | None = None  # for the next pass of the model
        self._draw: torch.Generator | None = None  # of this one; None while tokens go as they are
        self._kept: torch.Tensor | None = None
        self._tokens: torch.Tensor | None = None
        self._hooks = [model.register_forward_pre_hook(self._begin)]
        last = len(self._parts) - 1
        for index, (part, block) in enumerate(zip(self._parts, self.blocks.values(), strict=True)):
            self._hooks += [
                block.register_forward_pre_hook(self._enter(part, index == 0), with_kwargs=True),
                block.register_forward_hook(self._leave(index == last), always_call=True),
            ]

    def next(self, generator: torch.Generator) -> None:
        """The next pass of the model is routed, by tokens that follow from a generator on the CPU."""
        self._next = generator

    def remove(self) -> None:
        """Take the route off the model."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, model: nn.Module, args: Any) -> None:
        # What the last pass kept stays until here: checkpointing runs blocks again in its backward pass.
        self._draw, self._next = self._next, None
        self._kept = self._tokens = None

    def _enter(self, part: _Part, first: bool) -> Any:
        def enter(block: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
            if self._draw is None:
                return None
            told = part.named(args, given)
            if first:
                self._tokens = told[self.stack.tokens]
                if self._kept is None:
                    self._kept = self._drawn(self._tokens)
                told[self.stack.tokens] = self._tokens.index_select(1, self._kept)
            assert self._kept is not None and self._tokens is not None, "the span's first block comes first"
            part.gather(told, self._tokens.shape[1], self._kept)
            patched = PatchedModel.of(self.model)
            if patched is not None:
                patched.state.keep_tokens(len(self._kept))
            return part.as_given(told, len(args), given)

        return enter

    def _leave(self, last: bool) -> Any:
        def leave(block: nn.Module, args: Any, output: Any) -> Any:
            if self._draw is None:
                return None
            patched = PatchedModel.of(self.model)
            if patched is not None:
                patched.state.keep_tokens(None)
            if not last or output is None:  # None: checkpointing needs no more of the block
                return None
            assert self._kept is not None and self._tokens is not None, "the span's first block comes first"
            place = self.stack.output
            tokens = output if place is None else output[place]
            whole = torch.index_copy(self._tokens.to(tokens.dtype), 1, self._kept, tokens)
            if place is None:
                return whole
            return tuple(whole if index == place else part for index, part in enumerate(output))

        return leave

    def _drawn(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens that go through, in their order."""
        count = tokens.shape[1]
        chosen = torch.randperm(count, generator=self._draw)[: self.route.kept(count)]
        return chosen.sort().values.to(tokens.device)


class _Part:
    """How a block takes what belongs to tokens."""

    def __init__(self, stack: BlockStack, block: nn.Module, text_first: bool):
        self.stack, self.text_first = stack, text_first
        self.names = tuple(inspect.signature(block.forward).parameters)
        rotary = [name for name in stack.rotary if name in self.names]
        needed = {stack.tokens, stack.text, stack.mask, *stack.per_token} - {""}
        if not needed <= set(self.names) or (stack.rotary and not rotary):
            raise UnsupportedError(
                f"--route: {type(block).__name__} takes {', '.join(self.names)}, not what the record of its family "
                "tells; leave it out"
            )
        self.rotary = rotary[0] if rotary else ""

    def named(self, args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name."""
        return dict(zip(self.names, args, strict=False)) | given

    def as_given(
        self, told: dict[str, Any], count: int, given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments in the form they came: ``count`` by their places, the rest by name."""
        return tuple(told[name] for name in self.names[:count]), {name: told[name] for name in given}

    def gather(self, told: dict[str, Any], tokens: int, kept: torch.Tensor) -> None:
        """Leave in tables, masks and values per token what belongs to the kept ones and to the text."""
        stack = self.stack
        text = told[stack.text].shape[1] if stack.text else 0
        rows = {tokens: kept}
        if text:
            words = torch.arange(text, device=kept.device)
            rows[tokens + text] = torch.cat([words, kept + text] if self.text_first else [kept, words + tokens])
        if told.get(self.rotary) is not None:
            told[self.rotary] = tuple(_rows(table, rows, self.rotary) for table in told[self.rotary])
        mask = told.get(stack.mask) if stack.mask else None
        if mask is not None:
            mask = _along(mask, mask.ndim - 1, rows, stack.mask)
            told[stack.mask] = mask if mask.ndim < 3 else _along(mask, mask.ndim - 2, rows, stack.mask)
        for name in stack.per_token:
            value = told.get(name)
            if value is not None and value.ndim > 3 and value.shape[1] == tokens:
                told[name] = value.index_select(1, kept)


def span_of(model: nn.Module, route: Route) -> tuple[int, int]:
    """The blocks of a denoiser that a route skips, as a half-open range; raises as :class:`TokenRoute`."""
    _, stack = _described(model)
    count = len(_blocks(model, stack))
    return route.span(count, count - (stack.other(model) if stack.other is not None else 0))


def routed_blocks(model: nn.Module, route: Route) -> tuple[tuple[str, ...], int]:
    """The paths of the blocks that a share of the tokens skips, and the number of all blocks; raises as
    :class:`TokenRoute`."""
    start, stop = span_of(model, route)
    paths = tuple(_blocks(model, _described(model)[1]))
    return paths[start:stop], len(paths)


def check_route(model: nn.Module, route: Route, handle: Any = None) -> None:
    """Refuse what cannot be routed; the model may be one without values.

    Args:
        handle: the patch with the attention methods of the run, or None.

    Raises:
        UnsupportedError: a model or an attention method that needs all tokens. UsageError: blocks that are not there.
    """
    start, stop = span_of(model, route)
    inside = [f"{path}." for path in routed_blocks(model, route)[0]]
    for path, layer in ({} if handle is None else handle.layers).items():
        needs = [each.method.name for each in layer.assignments if not each.method.any_tokens]
        if needs and any(path.startswith(block) for block in inside):
            raise UnsupportedError(
                f"--route leaves tokens out of blocks {start}:{stop}, and attention {needs[0]} of layer {path} needs "
                "the whole grid; route other blocks, give the method other layers (--schedule), or leave one out"
            )


def _described(model: nn.Module) -> tuple[Family, BlockStack]:
    family = family_of(model)
    name = diffusers_class(model) or type(model).__name__
    stack = family.stack
    if stack is None or (stack.classes and name not in stack.classes):
        raise UnsupportedError(
            f"--route: the record of {name} ({family.name}) does not tell how tokens go through its blocks; leave it "
            "out"
        )
    return family, stack


def _blocks(model: nn.Module, stack: BlockStack) -> dict[str, nn.Module]:
    """Path -> block, in the order of execution."""
    return {f"{name}.{index}": block for name in stack.blocks for index, block in enumerate(getattr(model, name))}


def _rows(table: torch.Tensor, rows: dict[int, torch.Tensor], name: str) -> torch.Tensor:
    """A rotary table (N, D), (B, N, D) or (1, N, 1, D) of the rows that are left."""
    return _along(table, 0 if table.ndim == 2 else 1, rows, name)


def _along(value: torch.Tensor, axis: int, rows: dict[int, torch.Tensor], name: str) -> torch.Tensor:
    size = value.shape[axis]
    if size == 1:
        return value
    if size not in rows:
        raise UnsupportedError(
            f"--route: {name} is of {counted(size, 'token')}, expected {' or '.join(map(str, rows))}"
        )
    return value.index_select(axis, rows[size].to(value.device))
