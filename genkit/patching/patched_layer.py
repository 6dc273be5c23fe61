"""What happens to one attention module's calls: which patch serves them, with which site, or why none does."""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from torch.compiler import is_compiling

from genkit.attention.copies import site_for
from genkit.attention.site import Site
from genkit.errors import UnsupportedError
from genkit.families.base import OWN_KEYS, FoundSite
from genkit.layout import TokenLayout
from genkit.patching import compiled, first_step, interception, ulysses
from genkit.patching.assignment import Assignment, Kind, KindKey
from genkit.patching.bypass import bypass_reason, early_name
from genkit.patching.call_layouts import CallLayouts, SiteLayouts
from genkit.patching.call_state import CallState
from genkit.patching.counts import start_watch
from genkit.patching.head_split import HeadSplit
from genkit.patching.interception import Call, RunningModule
from genkit.patching.masks import DIFFERS, NO_MASK, MaskView, with_bias
from genkit.patching.meter import Meter
from genkit.patching.order import Order, Orders
from genkit.patching.step_tracker import Moment
from genkit.patching.ulysses import ShardOrders

_UNASKED = object()


class PatchedLayer:
    """The patches of one attention module.

    Args:
        state: what is known about the running denoiser call.
        found: the module's place in its family.
        layer, layers: index among the layers of its role, and their number.
        name: name shown to users.
    """

    def __init__(self, state: CallState, found: FoundSite, layer: int, layers: int, name: str):
        self.state = state
        self.path, self.role, self.rule = found.path, found.role, found.rule
        self.queries, self.keys, self.places = found.queries, found.keys, found.places
        self.guide = name.removesuffix(found.path) + found.guide if found.guide else ""
        self.heads = state.family.heads(found.module)
        self.layer, self.layers = layer, layers
        self.name = name
        self.assignments: list[Assignment] = []
        self.meters: tuple[Meter, ...] = ()  # of those who watch what the calls cost
        self.reached: int | None = None  # the latest sampling run in which an attention call came
        self.number = compiled.enroll(self)
        self._hooks: list[Any] = []
        self._processor: weakref.ref[Any] | None = None
        self._layouts = SiteLayouts(name, state.family, found)
        self._orders, self._shards = Orders(), ShardOrders()

    def hook(self, module: torch.nn.Module) -> None:
        """Start following the module's forward."""
        self._hooks = [
            module.register_forward_pre_hook(self.enter),
            module.register_forward_hook(self.leave, always_call=True),
        ]

    def unhook(self) -> None:
        """Stop following."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    @property
    def hooked(self) -> bool:
        """Whether module hooks (and not processors) lead here."""
        return bool(self._hooks)

    @property
    def idle(self) -> bool:
        """Whether nobody asks anything of the layer any more."""
        return not self.assignments and not self.meters

    def expect(self, processor: Any) -> None:
        """Calls come here through this processor, as long as it is the module's."""
        self._processor = weakref.ref(processor)

    def replaced(self, module: torch.nn.Module) -> str:
        """What a user should know when the processor that leads here is not the module's any more; empty otherwise."""
        now = getattr(module, "processor", None)
        if self._processor is None or now is self._processor():
            return ""
        return (
            f"its processor is {type(now).__name__}, not the one of genkit.attn_processors: never set, or "
            f"replaced (set_attn_processor, fuse_qkv_projections); set processors made anew, or use genkit.patch"
        )

    def enter(self, module: torch.nn.Module, args: Any) -> None:
        """Forward pre-hook: attention calls that follow belong to this layer."""
        # The frame of the module call that runs this hook.
        frame = None if is_compiling() else sys._getframe(1)
        interception.LOCAL.modules.append(RunningModule(self, frame))

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Forward hook, also after exceptions (then without output)."""
        running = interception.pop(self)
        if running is None or running.calls or output is None:
            return
        if not is_compiling():
            self.nothing_came(module, getattr(module, "processor", None))

    def nothing_came(self, module: Any, processor: Any) -> None:
        """The module finished without an attention call that passes the gate.

        That is right when a cache or a perturbed pass skips attention, and an error when the processor, set after
        patching, or the module's own code computes it out of sight.
        """
        sdpa = interception.INTERCEPTION.original(interception.SDPA)
        reason = bypass_reason(processor) or early_name(sdpa, module, processor)
        if reason is not None and self.assignments:
            raise UnsupportedError(f"layer {self.name}: {reason}; or remove the patch")
        for assignment in self.assignments:
            assignment.counts.skipped += 1

    def attend(
        self, running: RunningModule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call
    ) -> torch.Tensor:
        """Serve one attention call of the module; (B, N, H, D) in and out."""
        index = running.calls
        running.calls += 1
        if is_compiling():
            if torch.is_grad_enabled() and any(assignment.weighted for assignment in self.assignments):
                # The operator gives gradients to q, k and v only; these weights would miss theirs in silence.
                raise UnsupportedError(
                    f"layer {self.name}: weights of a method cannot be trained inside torch.compile; train without "
                    f"compiling, or run inside torch.no_grad()"
                )
            return compiled.attend(self.number, index, *_as_autocast(q, k, v), call)
        running.serving = True
        try:
            if call.split is None:
                return self.serve(index, q, k, v, call)
            return ulysses.attend(self, index, q, k, v, call)
        finally:
            running.serving = False

    def serve(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, count: bool = True
    ) -> torch.Tensor:
        """Run the method that covers this call, or the model's own attention, add what is to be added, note which."""
        moment = self.state.moment
        if moment is None:
            raise self.state.not_running()
        meters = self.meters if count else ()
        begun = Meter.begin(q) if meters else None
        rows, n_q, heads, _ = q.shape
        _, n_k, key_heads, _ = k.shape
        key, pairs = (index, n_q, n_k, heads, key_heads, call.scale), rows * n_q * n_k
        split = call.split
        if split is not None:
            heads *= split.processes
        if count:
            if not moment.aside:
                self.reached = moment.run
            if self.heads is None:
                self.heads = heads
        chosen: Assignment | None = None
        adding: tuple[Assignment, ...] = ()
        for assignment in self.assignments:
            covers = (assignment.everywhere and not moment.aside) or assignment.covers(moment)
            if split is not None:
                covers = covers and split.here(assignment.heads, key[3])[1] != ()
            if count:
                assignment.counts.pairs += pairs if split is None else pairs / split.processes
                if not covers:
                    assignment.counts.outside += 1
            if covers and assignment.may_add and assignment.adds:
                adding = (*adding, assignment)
            elif covers and chosen is None:
                chosen = assignment
        out = None if chosen is None else self._run(chosen, key, q, k, v, call, moment, pairs if count else None)
        if out is None:
            out = self._own(self.assignments if chosen is None else (chosen,), q, k, v, call, count)
        for assignment in adding:
            given = out if assignment.method.reads_output else None
            term = self._run(assignment, key, q, k, v, call, moment, pairs if count else None, given)
            out = out if term is None else out + term
        for meter in meters:
            meter.end(begun, q, k)
        return out

    def _run(
        self,
        assignment: Assignment,
        key: KindKey,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        call: Call,
        moment: Moment,
        pairs: int | None,
        given: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """What an assignment's method gives for this call; None when it cannot or declines, which is noted.

        ``pairs`` are the call's query-key pairs; None for a call that is not to be counted. ``given`` is what the
        call's attention gave, for a method that reads it.
        """
        autocast = torch._C._is_any_autocast_enabled()
        if autocast:
            q, k, v = _as_autocast(q, k, v)
        decided = self._decide(assignment, key, q, k, call, moment)
        if type(decided) is tuple:
            kind, site, view = decided
            if given is not None:
                site = site.reading(_as_autocast(given)[0])
            begun = start_watch(q) if q.is_cuda else perf_counter()
            if view.pairs is not None:
                out = assignment.method.attend_pairs(q, k, v, site, assignment.cache, view.pairs)
            elif not kind.plain or autocast or view is not NO_MASK or self.state.tiles:
                out = self._served(assignment, key[0], q, k, v, call, site, kind, view)
            else:
                out = assignment.method.attend(q, k, v, site, assignment.cache)
            if out is not None:
                if out.shape != q.shape or out.dtype != q.dtype or kind.tally is None:
                    _check_output(self, assignment, out, q, v)
                if pairs is not None:
                    assignment.counts.note_run(kind, site, pairs, begun)
                    for meter in self.meters:
                        meter.served(assignment, site, q, k)
                    if assignment.check is not None:
                        self._compare(assignment, kind, q, k, v, out, call, moment)
                return out
            if assignment.method.leaves(site, assignment.cache):
                assignment.counts.outside += pairs is not None
                return None
            decided = assignment.method.declines
        if pairs is not None:
            assignment.counts.declined[str(decided)] += 1
        return None

    def _compare(
        self, assignment: Assignment, kind: Kind, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        call: Call, moment: Moment,
    ) -> None:  # fmt: skip
        """The first-step check of an assignment, which is due once."""
        check, assignment.check = assignment.check, None
        if check is None or assignment.method.adds:
            return
        about = (self.name, assignment.method.describe(), moment.step, kind.heads)
        assignment.checked = first_step.compare(check, *about, q, k, v, out, call)

    def _decide(
        self, assignment: Assignment, key: KindKey, q: torch.Tensor, k: torch.Tensor, call: Call, moment: Moment
    ) -> tuple[Kind, Site, MaskView] | str:
        """What is known of a call that a method can serve, its site and its mask; else the reason why it cannot."""
        if call.obstacle is not None or call.causal or call.dropout or key[3] != key[4]:
            reason = call.obstacle or _obstacle(key, call)
            if reason is not None:
                return reason
        state, mask = self.state, call.mask
        if mask is not None and state.tiles and assignment.heads is not None:
            return "some heads are left to the model, whose mask is not in raster order"
        kinds = assignment.kinds if assignment.streams is state.streams else assignment.forget(state.streams)
        kind = kinds.get(key)
        if kind is None:
            if len(kinds) > 64:  # prompts of ever other lengths
                kinds.clear()
            kind = kinds[key] = self._kind(assignment, key, call.split)
        if isinstance(kind, str):
            return kind
        verdict: Any
        if mask is None:
            view, verdict = NO_MASK, kind.reasons.get(False, _UNASKED)
        else:
            view = state.mask(kind.mask_key, mask, q, k, kind.grid_rows, kind.grid_keys)
            if view.obstacle is not None:
                return view.obstacle
            if view.bias is not None and assignment.heads is not None:
                return "some heads are left to the model, and its attention mask is a bias"
            if view.bias is not None and assignment.method.reads_output:
                return "its attention mask is a bias, which further queries of the same keys would not keep"
            if view.pairs is not None:
                reason = self._pairs_refused(assignment, kind, call)
                if reason is not None:
                    return reason
            if view.grid and not assignment.method.hides_grid:
                return (
                    f"its attention mask hides tokens of the grid (padding), which {assignment.method.name} would read"
                )
            if view.rest and kind.site.layout.copies:
                return "its attention mask differs between queries, and the grid is in the sequence several times"
            verdict = kind.reasons.get(view.keys is not None, _UNASKED)
        both = moment.branch == "cond_uncond" or (moment.branch is None and moment.guided and state.family.halves)
        site = kind.site.at(moment.step, moment.steps, moment.branch, view.keys, moment.run, both)
        if verdict is _UNASKED:
            verdict = kind.reasons[view.keys is not None] = assignment.method.refusal(site, assignment.cache)
        return (kind, site, view) if verdict is None else verdict

    def _pairs_refused(self, assignment: Assignment, kind: Kind, call: Call) -> str | None:
        """Why a mask that differs between queries cannot be joined with the method's choice, or None when it can."""
        if not assignment.method.takes_pairs:
            return f"{DIFFERS}, which {assignment.method.name} cannot be joined with"
        if not kind.plain or self.state.tiles or call.split is not None or assignment.method.adds:
            return DIFFERS
        return None

    def _own(
        self, assignments: Sequence[Assignment], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call,
        count: bool,
    ) -> torch.Tensor:  # fmt: skip
        if not count:
            return call.own(q, k, v)
        begun = start_watch(q)
        out = call.own(q, k, v)
        for assignment in assignments:
            assignment.counts.own_time.stop(begun)
        return out

    def token_orders(self, index: int, n_q: int, n_k: int, split: HeadSplit) -> tuple[Order | None, Order | None]:
        """Where queries and keys are when the parts of all processes stand in a row; None: in place."""
        inputs, layouts = self.state.split_inputs, self._call_layouts(index, n_q, n_k)
        if isinstance(layouts, str) or self.role not in OWN_KEYS:
            return None, None
        return self._shards.of(layouts.asking, split, inputs), self._shards.of(layouts.keys, split, inputs)

    def _call_layouts(self, index: int, n_q: int, n_k: int) -> CallLayouts | str:
        """The layouts of a call, or why it cannot be served."""
        try:
            return self._layouts.of(self.state.streams, index, n_q, n_k)
        except UnsupportedError:
            if self.state.parallel is None:
                raise
            return f"context parallelism: {n_q} queries and {n_k} keys are not all the tokens (a part is elsewhere)"

    def _kind(self, assignment: Assignment, key: KindKey, split: HeadSplit | None) -> Kind | str:
        """What is known of calls of these sizes, or why they cannot be served."""
        index, n_q, n_k, count, _, scale = key
        layouts = self._call_layouts(index, n_q, n_k)
        if isinstance(layouts, str):
            return layouts
        first, heads, total = 0, assignment.heads, None
        if split is not None:
            total = count * split.processes
            if assignment.weighted or not assignment.method.heads_apart:
                return (
                    f"context parallelism gives this process {count} of {total} heads, and {assignment.method.name} "
                    f"{'has weights of all of them' if assignment.weighted else 'computes them together'}"
                )
            first, heads = split.here(assignment.heads, count)
            total = total if assignment.heads is None else len(assignment.heads)
        site = Site(
            name=self.name,
            layer=self.layer,
            layers=self.layers,
            role=self.role,
            heads=count if heads is None else len(heads),
            layout=layouts.queries,
            key_layout=layouts.keys,
            scale=scale,
            finest=self.state.finest,
            first_head=first,
            all_heads=total,
            places=self._places(),
            guide=self.guide,
            angles=self.state.angles,
        )
        site = site_for(assignment.method, site)
        return Kind(layouts, heads, site, (self.rule, self.queries, self._layouts.key_stream(index)))

    def _places(self) -> tuple[int, int] | None:
        """Height and width of the places that stand in the batch, where the record tells them."""
        layout = self.state.streams.get(self.places)
        return layout.grid[1:] if isinstance(layout, TokenLayout) and layout.has_grid else None

    def _served(
        self,
        assignment: Assignment,
        index: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        call: Call,
        site: Site,
        kind: Kind,
        view: MaskView,
    ) -> torch.Tensor | None:
        """The method's output for the queries as they came, or None when it declines."""
        width, asked, keys, values, layouts = v.shape[3], q, k, v, kind.layouts
        if site.output is not None:
            site = site.reading(layouts.spread(site.output))
        if view.bias is not None:
            scale = q.shape[3] ** -0.5 if site.scale is None else site.scale
            site = dataclasses.replace(site, scale=scale)
            asked, keys, values = with_bias(q, k, v, view.bias, scale)
        out = self._ordered(assignment, index, kind.heads, layouts.spread(asked), keys, values, site, call)
        if out is None:
            return None
        out = layouts.gather(out)
        if view.bias is not None:
            out = out[..., :width]
        if not view.rest:
            return out
        start, stop = layouts.grid_rows or (0, 0)
        if assignment.method.adds:  # its mask is that of the grid's queries alone: nothing is added to others
            return torch.nn.functional.pad(out[:, start:stop], (0, 0, 0, 0, start, out.shape[1] - stop))
        # What is not of the grid sees by the model's own mask, and asks the model's own attention.
        rows = torch.cat([q[:, :start], q[:, stop:]], dim=1)
        mask = torch.cat([call.mask[..., :start, :], call.mask[..., stop:, :]], dim=-2)
        own = call.own(rows, k, v, attn_mask=mask).to(out.dtype)
        return torch.cat([own[:, :start], out[:, start:stop], own[:, start:]], dim=1)

    def _ordered(
        self,
        assignment: Assignment,
        index: int,
        heads: tuple[int, ...] | None,
        q: Any,
        k: Any,
        v: Any,
        site: Site,
        call: Call,
    ) -> torch.Tensor | None:
        """The method's output; where the model's tokens are not in raster order, they are while the method runs."""
        tiles = self.state.tiles
        if not tiles:
            return assignment.attend(heads, q, k, v, site, call)
        asked = self._orders.of(site.key_layout, tiles.get(self._layouts.key_stream(index)), k.device)
        if asked is not None:
            k, v = asked.to_raster(k), asked.to_raster(v)
            if site.key_mask is not None:
                site = dataclasses.replace(site, key_mask=asked.to_raster(site.key_mask))
        asking = self._orders.of(site.layout, tiles.get(self.queries), q.device)
        if asking is None:
            return assignment.attend(heads, q, k, v, site, call)
        if site.output is not None:
            site = site.reading(asking.to_raster(site.output))
        out = assignment.attend(heads, asking.to_raster(q), k, v, site, call)
        return None if out is None else asking.from_raster(out)

    def __deepcopy__(self, memo: Any) -> PatchedLayer:
        raise UnsupportedError("a patched model cannot be copied: remove the patch, copy the model, patch again")

    def __reduce__(self) -> Any:
        raise UnsupportedError("a patched model cannot be pickled: remove the patch first")


def _obstacle(key: KindKey, call: Call) -> str | None:
    """What no method can do of a call, or None."""
    _, _, _, heads, key_heads, _ = key
    if call.causal:
        return "the model asks for causal attention"
    if call.dropout:
        return f"the model asks for attention dropout {call.dropout}"
    if key_heads != heads and not call.grouped:
        return f"its keys have {key_heads} heads, its queries {heads}"
    return None


def _as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Inside torch.autocast the tensors in its dtype, as the model's own attention would cast them."""
    kind = tensors[0].device.type
    if tensors[0].is_meta or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def _check_output(
    patched: PatchedLayer, assignment: Assignment, out: torch.Tensor, q: torch.Tensor, v: torch.Tensor
) -> None:
    expected = (*q.shape[:3], v.shape[3])
    if out.shape != expected or out.dtype != q.dtype or out.device != q.device:
        raise UnsupportedError(
            f"layer {patched.name}: {assignment.method.name} returned {tuple(out.shape)} {out.dtype} on {out.device}, "
            f"expected {expected} {q.dtype} on {q.device}"
        )
