"""What happens to one attention module's calls: which patch serves them, with which site, or why none does."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site
from genkit.errors import UnsupportedError
from genkit.layout import GRID, TEXT, Segment, TokenLayout
from genkit.patching import compiled, seam
from genkit.patching.schedule import Schedule, resolve
from genkit.patching.seam import Call, Record
from genkit.patching.tally import Tally
from genkit.patching.targets import bypass_reason

if TYPE_CHECKING:
    from genkit.families.base import FoundSite
    from genkit.patching.clock import Moment
    from genkit.patching.watch import Watch

_NUMBERS = itertools.count(1)


class Claim:
    """One method's hold on one attention module.

    Args:
        method: the attention method.
        schedule: where it applies.
        heads: covered query heads, or None for all of them.
        cache: plan storage of the patch.
    """

    def __init__(self, method: Method, schedule: Schedule, heads: tuple[int, ...] | None, cache: PatchCache):
        self.method = method
        self.schedule = schedule
        self.heads = heads
        self.cache = cache
        self.weighted = False  # whether the method has trainable weights here
        self.tally = Tally()
        self._steps: frozenset[int] | None = None
        self._total: int | None = None
        self._verdicts: dict[Any, str | None] = {}

    @property
    def adds(self) -> bool:
        """Whether the method's output is added to the attention; not while it makes a call for itself."""
        return self.method.adds and not self.cache.aside

    def covers(self, moment: Moment) -> bool:
        """Whether the schedule includes a call at this moment. The owner has checked that the schedule fits."""
        if moment.aside:
            return self.cache.aside == self.method.name
        schedule = self.schedule
        if schedule.branches is not None and moment.branch not in schedule.branches:
            return False
        if schedule.steps is None:
            return True
        if moment.steps is None:
            return any(
                span.start <= moment.step and (span.stop is None or moment.step < span.stop) for span in schedule.steps
            )
        if self._steps is None or self._total != moment.steps:
            self._steps = resolve("steps", schedule.steps, moment.steps)
            self._total = moment.steps
        return moment.step in self._steps

    def why_not(self, site: Site) -> str | None:
        """The method's own refusal of a site, asked once per layout."""
        key = (site.role, site.heads, site.layout, site.key_layout, site.key_mask is None)
        if key not in self._verdicts:
            self._verdicts[key] = self.method.why_not(site)
        return self._verdicts[key]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, call: Call) -> torch.Tensor | None:
        """The method's output for (B, N, H, D) tensors, heads outside the schedule computed by the model's own way."""
        if self.heads is None:
            return self.method.attend(q, k, v, site, self.cache)
        if k.shape[2] != q.shape[2]:
            repeat = q.shape[2] // k.shape[2]
            k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        inside = torch.tensor(self.heads, device=q.device)
        served = self.method.attend(*(x.index_select(2, inside) for x in (q, k, v)), site, self.cache)
        if served is None:
            return None
        rest = torch.tensor([h for h in range(q.shape[2]) if h not in self.heads], device=q.device)
        if call.mask is not None and call.mask.ndim == 4 and call.mask.shape[1] > 1:
            own = call.own(q, k, v).index_select(2, rest)  # the mask is laid out for all heads
        else:
            own = call.own(*(x.index_select(2, rest) for x in (q, k, v)))
        order = torch.argsort(torch.cat([inside, rest]))
        return torch.cat([served, own.to(served.dtype)], dim=2).index_select(2, order)


class Slot:
    """The patches of one attention module.

    Args:
        watch: what is known about the running denoiser call.
        found: the module's place in its family.
        layer, layers: index among the layers of its role, and their number.
        name: name shown to users.
    """

    def __init__(self, watch: Watch, found: FoundSite, layer: int, layers: int, name: str):
        self.watch = watch
        self.path, self.role = found.path, found.role
        self.queries, self.keys = found.queries, found.keys
        self.heads = int(found.module.heads)
        self.layer, self.layers = layer, layers
        self.name = name
        self.claims: list[Claim] = []
        self.number = next(_NUMBERS)
        compiled.SLOTS[self.number] = self
        self._hooks: list[Any] = []
        self._layouts: dict[tuple[TokenLayout, int], TokenLayout] = {}

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

    def enter(self, module: torch.nn.Module, args: Any) -> None:
        """Forward pre-hook: what follows belongs to this slot."""
        seam.push(Record(self, seam.calling_frame()))

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Forward hook, also after exceptions (then without output)."""
        record = seam.pop(self)
        if torch.compiler.is_compiling():
            return
        if record is not None and record.calls == 0 and output is not None:
            self.nothing_came(getattr(module, "processor", None))

    def nothing_came(self, processor: Any) -> None:
        """The module finished without an attention call that passes the gate.

        That is right when a cache or a perturbed pass skips attention, and an error when the processor, set after
        patching, computes it out of sight.
        """
        reason = bypass_reason(processor)
        if reason is not None:
            raise UnsupportedError(f"layer {self.name}: {reason}; or remove the patch")
        for claim in self.claims:
            claim.tally.skipped += 1

    def attend(self, record: Record, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call) -> torch.Tensor:
        """Serve one attention call of the module; (B, N, H, D) in and out."""
        index = record.calls
        record.calls += 1
        if torch.compiler.is_compiling():
            if torch.is_grad_enabled() and any(claim.weighted for claim in self.claims):
                # The operator gives gradients to q, k and v only; these weights would miss theirs in silence.
                raise UnsupportedError(
                    f"layer {self.name}: weights of a method cannot be trained inside torch.compile; train without "
                    f"compiling, or run inside torch.no_grad()"
                )
            return compiled.attend(self.number, index, q, k, v, call)
        with seam.own_attention():
            return self.serve(index, q, k, v, call)

    def serve(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, count: bool = True
    ) -> torch.Tensor:
        """Run the method that covers this call, or the model's own attention, add what is to be added, note which."""
        moment = self.watch.moment
        covering = [claim for claim in self.claims if claim.covers(moment)]
        for claim in self.claims if count else ():
            claim.tally.pairs += q.shape[0] * q.shape[1] * k.shape[1]
            if claim not in covering:
                claim.tally.outside += 1
        chosen = next((claim for claim in covering if not claim.adds), None)
        out = None if chosen is None else self._run(chosen, index, q, k, v, call, moment, count)
        if out is None:
            out = self._own(self.claims if chosen is None else [chosen], q, k, v, call, count)
        for claim in covering:
            if claim.adds:
                term = self._run(claim, index, q, k, v, call, moment, count)
                out = out if term is None else out + term
        return out

    def _run(
        self,
        claim: Claim,
        index: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        call: Call,
        moment: Moment,
        count: bool,
    ) -> torch.Tensor | None:
        """What a claim's method gives for this call; None when it cannot or declines, which is noted."""
        reason = call.obstacle or self._obstacle(q, k, call) or self._foreign_keys(q, k)
        if reason is None:
            view = self.watch.mask(self.role, call.mask, q, k)
            reason = view.obstacle
        if reason is None:
            site = self._site(index, q, k, call, moment, view.keys, claim)
            reason = claim.why_not(site)
        if reason is None:
            begun = claim.tally.method_time.start(q)
            out = claim.attend(q, k, v, site, call)
            if out is not None:
                _check_output(self, claim, out, q, v)
                if count:
                    claim.tally.method_time.stop(begun)
                    self._note(claim, site, q, k)
                return out
            reason = "the method declined this call"
        if count:
            claim.tally.declined[reason] += 1
        return None

    def _own(
        self, claims: list[Claim], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, count: bool
    ) -> torch.Tensor:
        begun = [claim.tally.own_time.start(q) for claim in claims] if count else []
        out = call.own(q, k, v)
        for claim, start in zip(claims if count else [], begun, strict=True):
            claim.tally.own_time.stop(start)
        return out

    def _obstacle(self, q: torch.Tensor, k: torch.Tensor, call: Call) -> str | None:
        if call.causal:
            return "the model asks for causal attention"
        if call.dropout:
            return f"the model asks for attention dropout {call.dropout}"
        if k.shape[2] != q.shape[2] and not call.grouped:
            return f"its keys have {k.shape[2]} heads, its queries {q.shape[2]}"
        return None

    def _site(
        self,
        index: int,
        q: torch.Tensor,
        k: torch.Tensor,
        call: Call,
        moment: Moment,
        key_mask: torch.Tensor | None,
        claim: Claim,
    ) -> Site:
        layout = self._layout(self.queries, q.shape[1])
        key_name = self.keys[min(index, len(self.keys) - 1)]
        key_layout = layout if key_name == self.queries else self._layout(key_name, k.shape[1])
        return Site(
            name=self.name,
            layer=self.layer,
            layers=self.layers,
            role=self.role,
            heads=q.shape[2] if claim.heads is None else len(claim.heads),
            layout=layout,
            key_layout=key_layout,
            step=moment.step,
            steps=moment.steps,
            branch=moment.branch,
            scale=call.scale,
            key_mask=key_mask,
            finest=self.watch.finest,
        )

    def _layout(self, stream: str, length: int) -> TokenLayout:
        """Layout of a stream, checked against the number of tokens that really came."""
        layout = self.watch.streams.get(stream)
        if layout is None:
            return TokenLayout.sequence(length, stream)
        if layout.length == length:
            return layout
        key = (layout, length)
        if key not in self._layouts:
            self._layouts[key] = self._shorter(layout, length)
        return self._layouts[key]

    def _shorter(self, layout: TokenLayout, length: int) -> TokenLayout:
        text = next((part.length for part in layout.segments if part.name == TEXT), 0)
        missing = layout.length - length
        if not self.watch.family.varying_text or not 0 <= missing <= text:
            parts = " + ".join(f"{part.length} {part.name}" for part in layout.segments)
            raise UnsupportedError(
                f"layer {self.name}: {length} tokens came, but the arguments of the {self.watch.family.name} model "
                f"tell of {layout.length} ({parts}, grid {'x'.join(map(str, layout.grid))}); genkit cannot tell "
                f"which is which"
            )
        segments = [
            Segment(part.name, part.length - missing) if part.name == TEXT else part for part in layout.segments
        ]
        return TokenLayout(layout.grid, tuple(part for part in segments if part.length or part.name == GRID))

    def _foreign_keys(self, q: torch.Tensor, k: torch.Tensor) -> str | None:
        if self.role in ("self", "joint", "audio_self") and k.shape[1] != q.shape[1]:
            return f"its {k.shape[1]} keys are not the {q.shape[1]} tokens that ask (an image prompt adapter?)"
        return None

    def _note(self, claim: Claim, site: Site, q: torch.Tensor, k: torch.Tensor) -> None:
        claim.tally.note_run(site)
        plain = dataclasses.replace(site, step=None, steps=None, branch=None, key_mask=None)
        claim.tally.sites[plain] = claim.tally.sites.get(plain, 0) + 1
        claim.tally.ran_pairs[plain] += q.shape[0] * q.shape[1] * k.shape[1]

    def __deepcopy__(self, memo: Any) -> Slot:
        raise UnsupportedError("a patched model cannot be copied: remove the patch, copy the model, patch again")

    def __reduce__(self) -> Any:
        raise UnsupportedError("a patched model cannot be pickled: remove the patch first")


def _check_output(slot: Slot, claim: Claim, out: torch.Tensor, q: torch.Tensor, v: torch.Tensor) -> None:
    expected = (*q.shape[:3], v.shape[3])
    if out.shape != expected or out.dtype != q.dtype or out.device != q.device:
        raise UnsupportedError(
            f"layer {slot.name}: {claim.method.name} returned {tuple(out.shape)} {out.dtype} on {out.device}, "
            f"expected {expected} {q.dtype} on {q.device}"
        )
