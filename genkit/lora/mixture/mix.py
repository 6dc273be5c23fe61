"""LoRAs beside a denoiser's layers, added token by token as gates say."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from genkit.attention.site import base_layer
from genkit.errors import UnsupportedError, UsageError
from genkit.families.lookup import family_of, unwrap
from genkit.layout import TokenLayout
from genkit.lora.keys import short
from genkit.lora.mixture.gates import Gates
from genkit.lora.pair import Pair
from genkit.patching.driver import running_pipeline

#: Layers of an attention module that make queries, keys and values of one input.
_INPUTS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"), ("to_query", "to_key", "to_value"))


@dataclass(frozen=True)
class Expert:
    """A LoRA of a mixture.

    Args:
        name: for messages.
        pairs: module path within the denoiser -> its change.
        strength: factor of it.
    """

    name: str
    pairs: Mapping[str, Pair]
    strength: float = 1.0

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(pair.rank for pair in self.pairs.values())


class MixedLayer(nn.Module):
    """The changes of one layer by all LoRAs that have it: ``sum_e g_e s_e B_e A_e x``, two products for all of them."""

    def __init__(self, pairs: Sequence[Pair | None], strengths: Sequence[float], like: torch.Tensor):
        super().__init__()
        self.down: torch.Tensor
        self.up: torch.Tensor
        self.owner: torch.Tensor
        kind: dict[str, Any] = {
            "device": like.device,
            "dtype": like.dtype if like.dtype.is_floating_point else torch.float32,
        }
        there = [(number, pair) for number, pair in enumerate(pairs) if pair is not None]
        down = torch.cat([pair.down.float() for _, pair in there])
        up = torch.cat([pair.up.double() * (pair.scale * strengths[number]) for number, pair in there], 1)
        owner = torch.cat([torch.full((pair.rank,), number) for number, pair in there])
        self.register_buffer("down", down.to(**kind), persistent=False)  # (sum of ranks, in)
        self.register_buffer("up", up.to(**kind), persistent=False)  # (out, sum of ranks)
        self.register_buffer("owner", owner.to(like.device), persistent=False)  # (sum of ranks,) whose row it is

    def forward(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """x (..., in) with gates (..., E) or (E,) -> (..., out)."""
        # Under offload the layer's device is known only when it is called.
        inner = F.linear(x, self.down.to(x))
        return F.linear(inner * gates[..., self.owner.to(x.device)], self.up.to(x))


class Mixture(nn.Module):
    """Several LoRAs on one denoiser, added inside its layers token by token. The LoRAs are frozen.

    Other adapters of the model (of distillation, say) stay in force everywhere. Gates are computed for the prompt's
    half of guidance and used for the other half too: two choices for one token would be amplified by guidance.

    Args:
        model: the denoiser; followed by hooks until :meth:`remove`.
        experts: the LoRAs.
        gates: how much a token takes of each.

    Raises:
        UsageError: no LoRA, or a layer that the model does not have.
        UnsupportedError: a LoRA with convolutions, biases or magnitudes (DoRA), which cannot be mixed by token.
    """

    def __init__(self, model: nn.Module, experts: Sequence[Expert], gates: Gates):
        super().__init__()
        if not experts:
            raise UsageError("a mixture needs at least one LoRA")
        model = unwrap(model)
        self.experts, self.gates = tuple(experts), gates
        self._family = family_of(model)
        object.__setattr__(self, "model", model)  # used, not owned
        self.groups = groups_of(model, self.experts)
        self.layers = nn.ModuleDict()
        self._present: dict[str, torch.Tensor] = {}
        self._names = tuple(inspect.signature(model.forward).parameters)
        self._held = _Held()
        self._hooks = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        try:
            for path, group in self.groups.items():
                self._put(path, group)
        except BaseException:
            self.remove()
            raise

    def _put(self, path: str, group: str) -> None:
        layer = base_layer(self.model.get_submodule(path))
        pairs = [expert.pairs.get(path) for expert in self.experts]
        key = path.replace(".", "/")
        self.layers[key] = MixedLayer(pairs, [expert.strength for expert in self.experts], layer.weight)
        there = torch.tensor([pair is not None for pair in pairs])
        self._present[group] = there | self._present.get(group, torch.zeros_like(there))

        def add(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            x = args[0]
            change = self.layers[key](x, self._shares(group, path, x))
            return output + change.to(output.dtype)

        self._hooks.append(layer.register_forward_hook(add))

    def _shares(self, group: str, path: str, x: torch.Tensor) -> torch.Tensor:
        def compute(x: torch.Tensor) -> torch.Tensor:
            return self.gates(group, path, x, self._present[group].to(x.device))

        return self._held.shares(group, x, compute)

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        told = self._family.streams(model, given).values()
        self.gates.begin([layout for layout in told if isinstance(layout, TokenLayout)])
        pipeline = running_pipeline(model)
        guided = bool(getattr(pipeline, "do_classifier_free_guidance", False))
        # Models that are told both halves at once get the prompt's half last.
        together = not {"cond", "uncond"} <= set(self._family.branches)
        self._held.begin(given.get("timestep") if guided else None, together)

    def remove(self) -> None:
        """Take the LoRAs off: the model is what it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _Held:
    """Gates of the prompt's half of guidance, for the other half of the same step."""

    def __init__(self) -> None:
        self._time: torch.Tensor | None = None
        self._gates: dict[tuple[str, int], torch.Tensor] = {}
        self._together = self._again = False
        self._calls: dict[str, int] = {}

    def begin(self, timestep: Any, together: bool) -> None:
        """A denoiser call begins; the first one of a timestep is the prompt's. None: there is no guidance."""
        time = None if timestep is None else torch.as_tensor(timestep).detach().flatten()[:1].double().cpu()
        self._again = time is not None and self._time is not None and torch.equal(time, self._time)
        self._together, self._time = together, time
        self._calls = {}
        if not self._again:
            self._gates = {}

    def shares(self, group: str, x: torch.Tensor, compute: Any) -> torch.Tensor:
        """The gates of a layer's input."""
        if self._time is None or x.dim() < 3:
            return compute(x)
        number = self._calls.get(group, 0)
        self._calls[group] = number + 1
        key = (group, number)
        rows = x.shape[0]
        if self._again and key in self._gates:
            found = self._gates[key]
        else:
            halved = self._together and not self._again and rows % 2 == 0
            found = compute(x[rows // 2 :] if halved else x)
            self._gates[key] = found
        if found.dim() < 3 or found.shape[0] == rows:
            return found if found.dim() < 3 or found.shape[1] == x.shape[1] else compute(x)
        return found.repeat(rows // found.shape[0], 1, 1) if rows % found.shape[0] == 0 else compute(x)


def groups_of(model: nn.Module, experts: Sequence[Expert]) -> dict[str, str]:
    """Path of every layer that a LoRA changes, in the model's order -> name of what layers with the same input share.

    Queries, keys and values of self-attention have one input; in cross-attention keys and values read another
    sequence.

    Raises:
        UsageError, UnsupportedError: see :class:`Mixture`.
    """
    wanted = {path for expert in experts for path in expert.pairs}
    paths = [path for path, _ in model.named_modules() if path in wanted]
    missing = sorted(wanted - set(paths))
    if missing:
        raise UsageError(
            f"{type(model).__name__} has no layer {short(missing[0])}, which a LoRA of the mixture changes"
        )
    for expert in experts:
        for path, pair in expert.pairs.items():
            _check(model, expert, path, pair)
    crossing = {site.path for site in family_of(model).find_sites(model) if site.keys != (site.queries,)}
    return {path: _group(path, crossing) for path in paths}


def _check(model: nn.Module, expert: Expert, path: str, pair: Pair) -> None:
    layer = base_layer(model.get_submodule(path))
    if pair.down.ndim != 2 or not hasattr(layer, "in_features"):
        raise UnsupportedError(
            f"LoRA {expert.name}: {short(path)} is a {type(layer).__name__}; only linear layers are mixed by token"
        )
    if pair.bias is not None or pair.magnitude is not None:
        kind = "a bias" if pair.magnitude is None else "magnitudes (DoRA)"
        raise UnsupportedError(f"LoRA {expert.name}: {short(path)} has {kind}, which cannot be mixed by token")
    if (layer.in_features, layer.out_features) != (pair.down.shape[1], pair.up.shape[0]):
        raise UsageError(
            f"LoRA {expert.name}: {short(path)} maps {layer.in_features} to {layer.out_features}, in the file "
            f"{pair.down.shape[1]} to {pair.up.shape[0]}"
        )


def _group(path: str, crossing: set[str]) -> str:
    parent, _, leaf = path.rpartition(".")
    for number, names in enumerate(_INPUTS):
        if leaf in names:
            base = f"{parent}.added" if number == 1 else parent
            if number != 1 and parent in crossing:
                return f"{base}.queries" if leaf == names[0] else f"{base}.keys"
            return f"{base}.input"
    return path
