"""What the node puts on a model: a wrapper around every model call and an override of its attention.

The wrapper sees the latent and the conditionings, so it knows the token grid and the noise level; the override gets
queries, keys and values. Both are plain functions, not objects: ComfyUI copies the options of a model deeply whenever
a later node clones it, and a function stays the same one. Nothing is written on the model: what a call knows about
itself goes with a copy of that call's ``transformer_options``.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site
from genkit.errors import GenkitError, UsageError, explain
from genkit.patching.masks import DIFFERS, MaskView, view_mask
from genkit.patching.schedule import parse_spans, resolve

from .layouts import Record, Sequence, at_level, block_count, record_of, sequence_of

OVERRIDE = "optimized_attention_override"
# Keyword arguments of attention calls that are understood; another one may change the result and declines the call.
_KNOWN = {"transformer_options", "_inside_attn_wrapper", "scale", "enable_gqa", "low_precision_attention"}
_NUMBERS = itertools.count()
_LOG = logging.getLogger("genkit.comfyui")


@dataclasses.dataclass
class ModelCall:
    """What is known during one call of the diffusion model.

    Args:
        model: the diffusion model.
        batch: rows of the latent.
        sequence: its tokens; None when the method does not apply to this call.
    """

    model: Any
    batch: int
    sequence: Sequence | None = None
    reached: int = 0  # attention calls over the grid
    served: int = 0
    site: Site | None = None  # of the last served call
    seen: Counter = dataclasses.field(default_factory=Counter)  # (queries, keys) -> attention calls
    masks: dict[int, tuple[torch.Tensor, MaskView]] = dataclasses.field(default_factory=dict)


class Patch:
    """One method on one model, with when and where it applies.

    Args:
        method: computes the attention.
        model: the diffusion model.
        record: how it lays out its tokens.
        start, end: share of the sampling at which the method begins and ends, from 0 to 1.
        dense_blocks: blocks that keep their own attention: numbers and half-open ranges, negative ones from the end.

    Raises:
        UsageError: shares that are no range, or blocks the model does not have.
    """

    def __init__(self, method: Method, model: Any, record: Record, start: float, end: float, dense_blocks: str):
        if not 0 <= start <= end <= 1:
            raise UsageError(
                explain("start_percent, end_percent", (start, end), "numbers from 0 to 1, the first not above")
            )
        self.method, self.record = method, record
        self.start, self.end = start, end
        self.blocks = block_count(record, model)
        self.dense = resolve("blocks", parse_spans("dense_blocks", dense_blocks), self.blocks)
        self.cache = PatchCache()
        self.key = f"genkit_{next(_NUMBERS)}"
        self._said: set[str] = set()

    def say(self, text: str, level: int = logging.WARNING) -> None:
        """Write a line to ComfyUI's log, once."""
        if text not in self._said:
            self._said.add(text)
            _LOG.log(level, "genkit %s: %s", self.method.name, text)

    def begin(self, base: Any, x: Any, sigma: torch.Tensor, context: Any, conditions: Mapping[str, Any]) -> ModelCall:
        """What is known of a model call before it runs.

        Args:
            base: ComfyUI's BaseModel, with the ``model_sampling`` that holds now.
            sigma: noise level of every row.
        """
        call = ModelCall(base.diffusion_model, len(x))
        sampling, now = base.model_sampling, float(sigma.max())
        if not float(sampling.percent_to_sigma(self.end)) <= now <= float(sampling.percent_to_sigma(self.start)):
            return call
        found = sequence_of(self.record, call.model, x, context, conditions)
        if isinstance(found, str):
            self.say(f"{found}; the model's own attention runs")
        else:
            call.sequence = found
        return call

    def finish(self, call: ModelCall, override: Any, options: Mapping[str, Any]) -> None:
        """Tell what came of a model call."""
        if call.site is not None:
            density = self.method.density(call.site, self.cache)
            self.say(
                f"{self.method.describe()} ran in {call.served} of {call.reached} attention calls over the grid "
                f"{'x'.join(map(str, call.site.layout.grid))}" + ("" if density is None else f", {density}"),
                logging.INFO,
            )
            for remark in self.method.remarks(self.cache):
                self.say(remark)
        if call.sequence is None or call.reached:
            return
        if options.get(OVERRIDE) is not override and not call.seen:
            self.say(
                "nothing reached it: a node applied later put its own attention override in its place and does not "
                "call this one; apply this node after that one"
            )
        elif self.record.levels:
            self.say(f"no attention over the whole feature map came; (queries, keys) that came: {_lengths(call)}")
        else:
            self.say(
                f"no attention over the {call.sequence.layout.length} tokens of this call came; (queries, keys) that "
                f"came: {_lengths(call)}; the model's own attention runs"
            )

    def attend(
        self,
        call: ModelCall,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        given: Mapping[str, Any],
    ) -> torch.Tensor | None:
        """Attention of q (B, N, H, D) over k, v (B, N, Hk, D), or None when the original function has to run.

        Args:
            given: the other keyword arguments of the attention call.
        """
        call.seen[q.shape[1], k.shape[1]] += 1
        options = given["transformer_options"]
        if call.sequence is None:
            return None
        sequence = at_level(call.sequence, options) if self.record.levels else call.sequence
        if isinstance(sequence, str):
            return self._decline(sequence)
        length = sequence.layout.length
        if q.shape[:2] != (call.batch, length) or k.shape[1] != length:
            return None  # cross-attention, a text refiner, ...: not over the grid
        block = call.reached if self.record.levels else self._block(call, options)
        call.reached += 1
        reason = self._obstacle(sequence, block, q, k, given)
        if reason is not None:
            return self._decline(reason)
        if block in self.dense:
            return None
        view = self._mask(call, mask, q, k, sequence.layout.grid_span)
        reason = view.obstacle
        if view.pairs is not None:
            reason = DIFFERS
        elif view.bias is not None:
            reason = "its attention mask adds numbers to the scores"
        elif view.grid and not self.method.hides_grid:
            reason = f"its attention mask hides places of the picture, which {self.method.name} would read"
        if reason is not None:
            return self._decline(reason)
        site = Site(
            f"block {block}", block, self.blocks, sequence.role, q.shape[2], sequence.layout, sequence.layout,
            scale=given.get("scale"), key_mask=view.keys,
        )  # fmt: skip
        out = self._run(q, k, v, site)
        if out is not None:
            call.served += 1
            call.site = site
        return out

    def _run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> torch.Tensor | None:
        reason = self.method.refusal(site, self.cache)
        if reason is None:
            try:
                out = self.method.attend(q, k, v, site, self.cache)
            except GenkitError as error:  # what the method refuses is told and left to the original function
                return self._decline(str(error))
            if out is not None:
                return out
            reason = self.method.declines
        return self._decline(reason)

    def _decline(self, reason: str) -> None:
        self.say(f"{reason}; the model's own attention runs there")

    def _obstacle(
        self, sequence: Sequence, block: int | None, q: torch.Tensor, k: torch.Tensor, given: Mapping[str, Any]
    ) -> str | None:
        """Why a call over the whole sequence is not served, or None."""
        if sequence.layout.length in sequence.keys:
            return (
                f"self- and cross-attention cannot be told apart: grid and conditioning both have "
                f"{sequence.layout.length} tokens"
            )
        if block is None or block >= self.blocks:
            return "which block an attention call belongs to is not known; a newer ComfyUI tells it (block_index)"
        unknown = sorted(set(given) - _KNOWN)
        if unknown:
            return f"the model passes {', '.join(unknown)} to its attention, which genkit does not know"
        if q.shape[2] % k.shape[2]:
            return f"the keys have {k.shape[2]} heads, the queries {q.shape[2]}"
        return None

    def _block(self, call: ModelCall, options: Mapping[str, Any]) -> int | None:
        """The number of the block that runs: as ComfyUI tells it, or counted; double blocks come before single ones."""
        index = options.get("block_index")
        if index is None:
            # Control branches run between the blocks: counting would give the wrong numbers.
            return None if hasattr(call.model, "vace_blocks") else call.reached
        if options.get("block_type") == "single" and len(self.record.blocks) == 2:
            return len(getattr(call.model, self.record.blocks[0])) + index
        return index

    @staticmethod
    def _mask(
        call: ModelCall, mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int]
    ) -> MaskView:
        """A mask as methods see it, read once per model call. (N, N) and (B, N, N) are broadcast over heads."""
        if mask is None:
            return MaskView()
        if id(mask) not in call.masks:
            full = {2: (None, None), 3: (slice(None), None)}.get(mask.ndim, ())
            view = view_mask(mask[full], q.shape[0], q.shape[1], k.shape[1], grid_keys=(grid,))
            call.masks[id(mask)] = (mask, view)  # the mask is kept, so that its id stays its own
        return call.masks[id(mask)][1]


def _lengths(call: ModelCall) -> str:
    return ", ".join(map(str, sorted(call.seen))) or "none, the model does not ask ComfyUI's attention override"


def apply(model: Any, method: Method, start: float, end: float, dense_blocks: str) -> Any:
    """A clone of a ComfyUI model whose attention the method computes; the model given stays as it is.

    A model that cannot be served is returned as a plain clone, and the log says why.

    Args:
        model: a ModelPatcher.
        method, start, end, dense_blocks: as in :class:`Patch`.
    """
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    diffusion_model = clone.get_model_object("diffusion_model")
    record = record_of(diffusion_model)
    if isinstance(record, str):
        _LOG.warning("genkit %s: %s; the model is passed on as it is", method.name, record)
        return clone
    patch = Patch(method, diffusion_model, record, start, end, dense_blocks)
    options = clone.model_options["transformer_options"]
    override = attention_override(patch, options.get(OVERRIDE))
    options[OVERRIDE] = override
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, patch.key, model_wrapper(patch, override))
    return clone


def model_wrapper(patch: Patch, override: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The wrapper around ``BaseModel.apply_model``: tells the override what it cannot see."""

    def wrapper(
        executor: Any, x: Any, t: Any, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: Any = None, **conditions: Any,
    ) -> torch.Tensor:  # fmt: skip
        options = dict(transformer_options or {})
        call = patch.begin(executor.class_obj, x, t, c_crossattn, conditions)
        told = {**options, patch.key: call}
        out = executor(x, t, c_concat, c_crossattn, control, told, **conditions)
        patch.finish(call, override, options)
        return out

    return wrapper


def attention_override(patch: Patch, previous: Callable[..., torch.Tensor] | None) -> Callable[..., torch.Tensor]:
    """The function for ``transformer_options["optimized_attention_override"]``.

    Args:
        previous: the override another node has put there; it runs where this one does not.
    """

    def override(
        func: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int,
        mask: torch.Tensor | None = None, attn_precision: torch.dtype | None = None, skip_reshape: bool = False,
        skip_output_reshape: bool = False, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        out = None
        call = (kwargs.get("transformer_options") or {}).get(patch.key)
        if call is None:
            patch.say("an attention call came outside of ComfyUI's apply_model; the model's own attention runs there")
        else:
            wanted = _split(q, k, v, heads, skip_reshape)
            if attn_precision == torch.float32:  # the model asks for scores in float32
                wanted = [x.float() for x in wanted]
            out = patch.attend(call, *wanted, mask, kwargs)
        if out is not None:
            out = out.to(q.dtype)
            return out.transpose(1, 2) if skip_output_reshape else out.flatten(2)
        given = {"mask": mask, "attn_precision": attn_precision, "skip_reshape": skip_reshape}
        given |= {"skip_output_reshape": skip_output_reshape, **kwargs}
        if previous is not None:
            return previous(func, q, k, v, heads, **given)
        return func(q, k, v, heads, **given)

    # The methods' kernels choose blocks by data and keep plans: a compiled model calls them as they are.
    return torch.compiler.disable(override)


def _split(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, skip_reshape: bool) -> list[torch.Tensor]:
    """Queries, keys and values as (B, N, H, D), from (B, H, N, D) or (B, N, H * D); some models pass (B, N, H, D)
    in place of the latter."""
    if skip_reshape:
        return [x.transpose(1, 2) for x in (q, k, v)]
    width = q[0, 0].numel() // heads
    return [x.reshape(*x.shape[:2], -1, width) for x in (q, k, v)]
