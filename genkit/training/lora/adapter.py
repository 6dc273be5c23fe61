"""The adapter that is trained on a frozen denoiser: LoRA, DoRA or LoKr, put in by peft."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.lora.lokr import pair_of_lokr
from genkit.lora.pair import Pair
from genkit.training.engine.random_state import undisturbed
from genkit.training.engine.shards import gathered
from genkit.training.lora.targets import check_patterns, find_targets, fitting

#: Kinds of adapters, all through peft.
LORA, DORA, LOKR = "lora", "dora", "lokr"
KINDS = (LORA, DORA, LOKR)
#: How the lower half begins; the upper half is zero, so that nothing changes before the first step.
GAUSSIAN, KAIMING = "gaussian", "kaiming"
INITS = (KAIMING, GAUSSIAN)
#: The name under which peft holds the adapter that is trained.
NAME = "default"


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained.

    Args:
        kind: one of :data:`KINDS`.
        rank: of the change of every layer.
        alpha: the change is multiplied by alpha / rank; None is the rank: a factor of 1.
        dropout: share of a layer's inputs that the adapter does not see in a step, in 0..1.
        rslora: divide by the root of the rank instead (Kalajdzievski 2023).
        init: one of :data:`INITS`.
        targets, excluded: see :func:`genkit.training.lora.targets.find_targets`.
        ranks, alphas: layers, named in the same way -> another rank or alpha there.
        factor: of LoKr: side of the smaller Kronecker factor; -1 for the most even split.
    """

    kind: str = LORA
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False
    init: str = KAIMING
    targets: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    factor: int = -1

    def __post_init__(self):
        for name, given, allowed in (("adapter", self.kind, KINDS), ("init_lora_weights", self.init, INITS)):
            if given not in allowed:
                raise UsageError(explain(name, given, allowed))
        for rank in (self.rank, *self.ranks.values()):
            if rank < 1:
                raise UsageError(explain("rank", rank, "a whole number from 1 on"))
        for alpha in (self.alpha, *self.alphas.values()):
            if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
                raise UsageError(explain("lora_alpha", alpha, "a number above 0"))
        if not 0 <= self.dropout < 1:
            raise UsageError(explain("lora_dropout", self.dropout, "a number from 0 to below 1"))
        if self.kind == LOKR and (self.rslora or self.dropout or self.init != KAIMING):
            raise UsageError("adapter lokr has no use_rslora, no dropout, and begins as peft does it; leave them out")


class Adapter:
    """An adapter on a denoiser; the denoiser's own parameters are frozen, the adapter's are float32.

    Args:
        model: a Diffusers model; changed in place until :meth:`remove`.
        config: what is put in.
        default: regular expression of the layers that the model's family trains by default.
        seed: of the adapter's start; the global random numbers are not moved.

    Raises:
        UsageError: layers that are not there, ranks for layers that are not trained, a rank beyond a layer's size.
        UnsupportedError: peft is missing, or the model takes no adapter.
    """

    def __init__(self, model: Any, config: AdapterConfig, default: str | None = None, seed: int = 0):
        if find_spec("peft") is None:
            raise UnsupportedError("training a LoRA needs the package peft; pip install 'genkit[train]'")
        if not hasattr(model, "add_adapter"):
            raise UnsupportedError(f"{type(model).__name__} takes no adapter: Diffusers gives it no add_adapter")
        if NAME in getattr(model, "peft_config", {}):
            raise UsageError(f"{type(model).__name__} has an adapter named {NAME!r} already; merge or unload it first")
        self.model, self.config = model, config
        self.targets = find_targets(model, config.targets, config.excluded, default)
        check_patterns("rank_pattern", config.ranks, self.targets)
        check_patterns("alpha_pattern", config.alphas, self.targets)
        model.requires_grad_(False)
        with undisturbed():
            torch.manual_seed(seed)
            model.add_adapter(self._peft(), NAME)
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        for value in self.parameters.values():
            value.data = value.data.float()
        self._check_layers()
        self._check_ranks()

    def _peft(self) -> Any:
        """The configuration as peft takes it, with ranks and alphas by whole paths."""
        from peft import LoKrConfig, LoraConfig

        config = self.config
        ranks = {
            path: rank for text, rank in config.ranks.items() for path in fitting("rank_pattern", text, self.targets)
        }
        alphas: dict[str, float] = dict(ranks) if config.alpha is None else {}
        for text, alpha in config.alphas.items():
            alphas.update(dict.fromkeys(fitting("alpha_pattern", text, self.targets), alpha))
        common: dict[str, Any] = {
            "r": config.rank,
            "target_modules": list(self.targets),
            "rank_pattern": {f"^{_literal(path)}": rank for path, rank in ranks.items()},
            "alpha_pattern": {f"^{_literal(path)}": alpha for path, alpha in alphas.items()},
        }
        alpha: Any = config.rank if config.alpha is None else config.alpha
        if config.kind == LOKR:
            return LoKrConfig(**common, alpha=alpha, decompose_factor=config.factor)
        return LoraConfig(
            **common,
            lora_alpha=alpha,
            lora_dropout=config.dropout,
            use_rslora=config.rslora,
            use_dora=config.kind == DORA,
            init_lora_weights="gaussian" if config.init == GAUSSIAN else True,
        )

    def _check_layers(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        found = [path for path, module in self.model.named_modules() if isinstance(module, BaseTunerLayer)]
        if sorted(found) != sorted(self.targets):
            other = sorted(set(found) ^ set(self.targets))[0]
            raise UnsupportedError(
                f"peft put the adapter on other layers than the {len(self.targets)} asked for: {other}"
            )

    def _check_ranks(self) -> None:
        """Refuse ranks that no file could hold."""
        for path in self.targets if self.config.kind == LOKR else ():
            layer = self.model.get_submodule(path)
            if NAME in layer.lokr_w2:
                rows, columns = layer.lokr_w2[NAME].shape
                self.remove()
                raise UsageError(
                    f"rank: {self.config.rank} is too large for LoKr at {path}, whose second factor is {rows} x "
                    f"{columns}; allowed: below {max(rows, columns) // 2}, half of its longer side, or another "
                    "lokr_factor"
                )

    @property
    def count(self) -> int:
        """Number of trainable numbers."""
        return sum(value.numel() for value in self.parameters.values())

    def pairs(self) -> dict[str, Pair]:
        """Every layer's change as a pair of halves with its scale; gathered where the weights are in shards, so every
        process must ask."""
        return {path: self._pair(self.model.get_submodule(path)) for path in self.targets}

    def _pair(self, layer: Any) -> Pair:
        if self.config.kind == LOKR:
            first, second = (_factor(layer, half) for half in ("lokr_w1", "lokr_w2"))
            return pair_of_lokr(first, second, layer.scaling[NAME])
        down, up = _whole(layer.lora_A[NAME].weight), _whole(layer.lora_B[NAME].weight)
        magnitude = _whole(layer.lora_magnitude_vector[NAME].weight) if self.config.kind == DORA else None
        return Pair(down=down, up=up, alpha=layer.scaling[NAME] * down.shape[0], magnitude=magnitude)

    def check_start(self, pairs: Mapping[str, Pair], name: str) -> None:
        """Refuse what :meth:`begin_with` could not begin with; the model may be one without values.

        Raises:
            UsageError: other layers, ranks or kinds than this adapter's.
        """
        differ = sorted(set(pairs) ^ set(self.targets))
        if differ:
            where = "is not trained here" if differ[0] in pairs else "is not in the file"
            raise UsageError(
                f"--init-lora {name}: {counted(len(differ), 'layer differs', 'layers differ')} from those "
                f"that are trained, {differ[0]} {where}; "
                "give the target_modules that it was trained with"
            )
        for path, pair in pairs.items():
            layer = self.model.get_submodule(path)
            down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            if (pair.magnitude is not None) != (self.config.kind == DORA):
                raise UsageError(f"--init-lora {name}: use_dora differs between the file and this run")
            if pair.rank != down.shape[0]:
                raise UsageError(
                    f"--init-lora {name}: {path} has rank {pair.rank}, here {down.shape[0]}; give the same rank, or "
                    "genkit lora resize the file"
                )
            if pair.down.shape != down.shape or pair.up.shape != up.shape:
                there, here = ([tuple(half.shape) for half in halves] for halves in ((pair.down, pair.up), (down, up)))
                raise UsageError(
                    f"--init-lora {name}: the halves of {path} are {there}, here {here}; give another file"
                )

    @torch.no_grad()
    def begin_with(self, pairs: Mapping[str, Pair], name: str) -> None:
        """Begin with a trained LoRA instead of none.

        Args:
            pairs: layer -> its halves.
            name: of the file, for messages.

        Raises:
            UsageError: as :meth:`check_start`.
        """
        self.check_start(pairs, name)
        for path, pair in pairs.items():
            layer = self.model.get_submodule(path)
            layer.lora_A[NAME].weight.copy_(pair.down)
            layer.lora_B[NAME].weight.copy_(pair.up * (pair.scale / layer.scaling[NAME]))
            if pair.magnitude is not None:
                layer.lora_magnitude_vector[NAME].weight.copy_(pair.magnitude)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model's own answers within the ``with`` block."""
        self.model.disable_adapters()
        try:
            yield
        finally:
            self.model.enable_adapters()

    def remove(self) -> None:
        """Take the adapter out: the model is bit for bit what it was."""
        self.model.unload_lora()


def _whole(value: torch.Tensor) -> torch.Tensor:
    return gathered(value.detach())


def _factor(layer: Any, half: str) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One Kronecker factor of a LoKr layer, whole or as its halves."""
    if NAME in getattr(layer, half):
        return _whole(getattr(layer, half)[NAME])
    first, second = (_whole(getattr(layer, f"{half}_{part}")[NAME]) for part in "ab")
    return first, second


def _literal(path: str) -> str:
    return path.replace(".", r"\.")
