"""Watching what the attention of a model costs, whatever patches are on it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from genkit.patching.compiled import forget_stale_graphs
from genkit.patching.interception import INTERCEPTION
from genkit.patching.meter import AttentionCost, Meter
from genkit.patching.patched_layer import PatchedLayer
from genkit.patching.patched_model import PatchedModel
from genkit.patching.step_tracker import StepTracker
from genkit.patching.targets import find_denoisers

if TYPE_CHECKING:
    from genkit.attention.method import Method
    from genkit.attention.site import Site


class Watch:
    """Times and counts every attention call of a pipeline's denoisers, patched or not. Outputs do not change.

    Patches may come and go meanwhile; their calls are counted with what their methods compute. A context manager:
    leaving it, or :meth:`remove`, takes it off.

    Args:
        target: a Diffusers pipeline or a bare denoiser.

    Raises:
        UnsupportedError: genkit knows none of its denoisers.

    Cost: some microseconds an attention call. On a GPU the clock is that of the device, nothing waits for it.
    """

    def __init__(self, target: Any):
        self._held: list[tuple[PatchedModel, PatchedLayer, Meter]] = []
        denoisers = find_denoisers(target)
        models: list[Any] = [denoiser.model() for denoiser in denoisers]  # the caller holds them
        there = [PatchedModel.of(model) for model in models]
        tracker = next((each.tracker for each in there if each is not None), None) or StepTracker()
        tracker.learn(target if isinstance(getattr(target, "components", None), dict) else None, None)
        for model in models:
            forget_stale_graphs(model)
        INTERCEPTION.hold()
        self._lease = weakref.finalize(self, INTERCEPTION.release)
        self._lease.atexit = False
        for denoiser, model in zip(denoisers, models, strict=True):
            patched = PatchedModel.of(model) or PatchedModel(model, denoiser.family, tracker)
            for found in denoiser.sites:
                layer = patched.layers.get(found.path)
                if layer is None:
                    name = denoiser.prefix + found.path
                    layer = patched.layers[found.path] = PatchedLayer(
                        patched.state, found, *denoiser.layer(found), name
                    )
                    layer.hook(found.module)
                meter = Meter()
                layer.meters = (*layer.meters, meter)
                self._held.append((patched, layer, meter))

    def clear(self) -> None:
        """Count anew from here on."""
        for _, _, meter in self._held:
            meter.clear()

    def cost(self, roles: tuple[str, ...] | None = None) -> AttentionCost:
        """What attention took since the start or the last :meth:`clear`.

        Args:
            roles: kinds of attention that count, such as ``("self",)``; None = all of the denoisers.
        """
        chosen = [meter for _, layer, meter in self._held if roles is None or layer.role in roles]
        saved = [meter.saved() for meter in chosen]
        dense = sum(meter.dense for meter in chosen)
        known = [each for each in saved if each is not None]
        told = len(known) == len(saved)
        return AttentionCost(
            sum(meter.time.seconds() for meter in chosen),
            sum(meter.calls for meter in chosen),
            dense,
            dense - sum(each[0] for each in known) if told else None,
            dense - sum(each[1] for each in known) if told else None,
        )

    @property
    def served(self) -> tuple[tuple[Method, Site], ...]:
        """Every method that served calls, with its first kind of site."""
        found: dict[Method, Site] = {}
        for _, _, meter in self._held:
            for method, site in meter.methods():
                found.setdefault(method, site)
        return tuple(found.items())

    @property
    def silent(self) -> tuple[str, ...]:
        """Names of attention modules of which no call came: they compute out of sight, or were not reached."""
        return tuple(layer.name for _, layer, meter in self._held if not meter.calls)

    def remove(self) -> None:
        """Take the watch off; what it counted stays. Twice is harmless."""
        if not self._lease.alive:
            return
        for patched, layer, meter in self._held:
            layer.meters = tuple(each for each in layer.meters if each is not meter)
            patched.drop(layer)
        for patched in dict.fromkeys(patched for patched, _, _ in self._held):
            patched.close_if_free()
        self._lease()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
