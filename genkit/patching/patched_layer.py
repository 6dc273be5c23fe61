"""What happens to one attention module's calls: which patch serves them, with which site, or why none does."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch

from genkit.attention.site import Site
from genkit.errors import UnsupportedError
from genkit.families.base import FoundSite
from genkit.patching import compiled, interception
from genkit.patching.assignment import Assignment, Kind
from genkit.patching.bypass import bypass_reason, early_name
from genkit.patching.call_layouts import CallLayouts, SiteLayouts
from genkit.patching.call_state import CallState
from genkit.patching.interception import Call, RunningModule
from genkit.patching.masks import MaskView, with_bias
from genkit.patching.order import Orders
from genkit.patching.step_tracker import Moment


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
        self.queries, self.keys = found.queries, found.keys
        self.heads = state.family.heads(found.module)
        self.layer, self.layers = layer, layers
        self.name = name
        self.assignments: list[Assignment] = []
        self.reached: int | None = None  # the latest sampling run in which an attention call came
        self.number = compiled.enroll(self)
        self._hooks: list[Any] = []
        self._processor: weakref.ref[Any] | None = None
        self._layouts = SiteLayouts(name, state.family, found)
        self._orders = Orders()

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
        interception.push(RunningModule(self, interception.calling_frame()))

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Forward hook, also after exceptions (then without output)."""
        running = interception.pop(self)
        if torch.compiler.is_compiling():
            return
        if running is not None and running.calls == 0 and output is not None:
            self.nothing_came(module, getattr(module, "processor", None))

    def nothing_came(self, module: Any, processor: Any) -> None:
        """The module finished without an attention call that passes the gate.

        That is right when a cache or a perturbed pass skips attention, and an error when the processor, set after
        patching, or the module's own code computes it out of sight.
        """
        sdpa = interception.INTERCEPTION.original(interception.SDPA)
        reason = bypass_reason(processor) or early_name(sdpa, module, processor)
        if reason is not None:
            raise UnsupportedError(f"layer {self.name}: {reason}; or remove the patch")
        for assignment in self.assignments:
            assignment.counts.skipped += 1

    def attend(
        self, running: RunningModule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call
    ) -> torch.Tensor:
        """Serve one attention call of the module; (B, N, H, D) in and out."""
        index = running.calls
        running.calls += 1
        if torch.compiler.is_compiling():
            if torch.is_grad_enabled() and any(assignment.weighted for assignment in self.assignments):
                # The operator gives gradients to q, k and v only; these weights would miss theirs in silence.
                raise UnsupportedError(
                    f"layer {self.name}: weights of a method cannot be trained inside torch.compile; train without "
                    f"compiling, or run inside torch.no_grad()"
                )
            return compiled.attend(self.number, index, *_as_autocast(q, k, v), call)
        with interception.own_attention():
            return self.serve(index, q, k, v, call)

    def serve(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, count: bool = True
    ) -> torch.Tensor:
        """Run the method that covers this call, or the model's own attention, add what is to be added, note which."""
        moment = self.state.moment
        if count:
            self._meet(q, moment)
        covering = [assignment for assignment in self.assignments if assignment.covers(moment)]
        for assignment in self.assignments if count else ():
            assignment.counts.pairs += _pairs(q, k)
            if assignment not in covering:
                assignment.counts.outside += 1
        chosen = next((assignment for assignment in covering if not assignment.adds), None)
        out = None if chosen is None else self._run(chosen, index, q, k, v, call, moment, count)
        if out is None:
            out = self._own(self.assignments if chosen is None else [chosen], q, k, v, call, count)
        for assignment in covering:
            if assignment.adds:
                term = self._run(assignment, index, q, k, v, call, moment, count)
                out = out if term is None else out + term
        return out

    def _meet(self, q: torch.Tensor, moment: Moment) -> None:
        if not moment.aside:
            self.reached = moment.run
        if self.heads is None:
            self.heads = q.shape[2]

    def _run(
        self,
        assignment: Assignment,
        index: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        call: Call,
        moment: Moment,
        count: bool,
    ) -> torch.Tensor | None:
        """What an assignment's method gives for this call; None when it cannot or declines, which is noted."""
        q, k, v = _as_autocast(q, k, v)
        reason = call.obstacle or self._obstacle(q, k, call)
        if reason is None and self.state.tiles and assignment.heads is not None and call.mask is not None:
            reason = "some heads are left to the model, whose mask is not in raster order"
        kind: Kind | None = None
        if reason is None:
            heads = q.shape[2] if assignment.heads is None else len(assignment.heads)
            sizes = (index, q.shape[1], k.shape[1], heads, call.scale)
            found = assignment.kind(self.state.streams, sizes, lambda: self._kind(*sizes))
            if isinstance(found, str):
                reason = found
            else:
                kind = found
        if kind is not None:
            view = self.state.mask(kind.mask_key, call.mask, q, k, kind.grid_rows)
            reason = view.obstacle
            if reason is None and view.bias is not None and assignment.heads is not None:
                reason = "some heads are left to the model, and its attention mask is a bias"
            if reason is None:
                site = kind.site.at(moment.step, moment.steps, moment.branch, view.keys)
                reason = assignment.why_not(kind, site)
        if kind is not None and reason is None:
            begun = assignment.counts.method_time.start(q)
            out = self._served(assignment, index, q, k, v, call, site, kind.layouts, view)
            if out is not None:
                _check_output(self, assignment, out, q, v)
                if count:
                    assignment.counts.method_time.stop(begun)
                    assignment.counts.note_run(site, _pairs(q, k))
                return out
            reason = assignment.method.declines
        if count:
            assignment.counts.declined[str(reason)] += 1
        return None

    def _own(
        self, assignments: list[Assignment], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, count: bool
    ) -> torch.Tensor:
        begun = [assignment.counts.own_time.start(q) for assignment in assignments] if count else []
        out = call.own(q, k, v)
        for assignment, start in zip(assignments if count else [], begun, strict=True):
            assignment.counts.own_time.stop(start)
        return out

    def _obstacle(self, q: torch.Tensor, k: torch.Tensor, call: Call) -> str | None:
        if call.causal:
            return "the model asks for causal attention"
        if call.dropout:
            return f"the model asks for attention dropout {call.dropout}"
        if k.shape[2] != q.shape[2] and not call.grouped:
            return f"its keys have {k.shape[2]} heads, its queries {q.shape[2]}"
        return None

    def _kind(self, index: int, n_q: int, n_k: int, heads: int, scale: float | None) -> Kind | str:
        """What is known of calls of these sizes, or why they cannot be served."""
        layouts = self._layouts.of(self.state.streams, index, n_q, n_k)
        if isinstance(layouts, str):
            return layouts
        site = Site(
            name=self.name,
            layer=self.layer,
            layers=self.layers,
            role=self.role,
            heads=heads,
            layout=layouts.queries,
            key_layout=layouts.keys,
            scale=scale,
            finest=self.state.finest,
        )
        return Kind(layouts, site, (self.rule, self.queries, self._layouts.key_stream(index)))

    def _served(
        self,
        assignment: Assignment,
        index: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        call: Call,
        site: Site,
        layouts: CallLayouts,
        view: MaskView,
    ) -> torch.Tensor | None:
        """The method's output for the queries as they came, or None when it declines."""
        width, asked, keys, values = v.shape[3], q, k, v
        if view.bias is not None:
            scale = q.shape[3] ** -0.5 if site.scale is None else site.scale
            site = dataclasses.replace(site, scale=scale)
            asked, keys, values = with_bias(q, k, v, view.bias, scale)
        out = self._ordered(assignment, index, layouts.spread(asked), keys, values, site, call)
        if out is None:
            return None
        out = layouts.gather(out)
        if view.bias is not None:
            out = out[..., :width]
        if not view.rest:
            return out
        # What is not of the grid sees by the model's own mask, and asks the model's own attention.
        start, stop = layouts.grid_rows or (0, 0)
        rows = torch.cat([q[:, :start], q[:, stop:]], dim=1)
        mask = torch.cat([call.mask[..., :start, :], call.mask[..., stop:, :]], dim=-2)
        own = call.own(rows, k, v, attn_mask=mask).to(out.dtype)
        return torch.cat([own[:, :start], out[:, start:stop], own[:, start:]], dim=1)

    def _ordered(
        self, assignment: Assignment, index: int, q: Any, k: Any, v: Any, site: Site, call: Call
    ) -> torch.Tensor | None:
        """The method's output; where the model's tokens are not in raster order, they are while the method runs."""
        tiles = self.state.tiles
        if not tiles:
            return assignment.attend(q, k, v, site, call)
        asked = self._orders.of(site.key_layout, tiles.get(self._layouts.key_stream(index)), k.device)
        if asked is not None:
            k, v = asked.to_raster(k), asked.to_raster(v)
            if site.key_mask is not None:
                site = dataclasses.replace(site, key_mask=asked.to_raster(site.key_mask))
        asking = self._orders.of(site.layout, tiles.get(self.queries), q.device)
        if asking is None:
            return assignment.attend(q, k, v, site, call)
        out = assignment.attend(asking.to_raster(q), k, v, site, call)
        return None if out is None else asking.from_raster(out)

    def __deepcopy__(self, memo: Any) -> PatchedLayer:
        raise UnsupportedError("a patched model cannot be copied: remove the patch, copy the model, patch again")

    def __reduce__(self) -> Any:
        raise UnsupportedError("a patched model cannot be pickled: remove the patch first")


def _pairs(q: torch.Tensor, k: torch.Tensor) -> int:
    """Query-key pairs of a call, rows of the batch counted, heads not."""
    return q.shape[0] * q.shape[1] * k.shape[1]


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
