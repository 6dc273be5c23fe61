"""Training the router of a mixture: several finished LoRAs are frozen, and which of them a token takes is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.lora.files import Lora
from genkit.lora.mixture import Mixture, Router
from genkit.lora.mixture.files import experts_of, save_router, widths_of
from genkit.lora.mixture.gates import routing_loss
from genkit.training.data.batch import Batch
from genkit.training.engine.keep import Export
from genkit.training.lora.task import LoraTask

#: Share of the steps before choices are made more certain.
_START = 0.2


@dataclass(frozen=True)
class RouterConfig:
    """What tells a router from other adapters."""

    kind: str = "router"
    dropout: float = 0.0


class RouterAdapter:
    """A mixture on a denoiser whose router is trained; the denoiser and the LoRAs are frozen.

    Args:
        pipeline: whose denoiser it is.
        component: name of the denoiser in it.
        loras: the LoRA files to choose among.
        none: whether a token may take none.

    Raises:
        ArtifactError: a file that does not fit.
    """

    def __init__(self, pipeline: Any, component: str, loras: Sequence[Lora], none: bool = True):
        self.model, self.config, self.loras = getattr(pipeline, component), RouterConfig(), tuple(loras)
        self.model.requires_grad_(False)
        self.experts = experts_of(pipeline, loras, component)
        self.router = Router(widths_of(self.model, self.experts), len(self.experts), none)
        self.mixture = Mixture(self.model, self.experts, self.router)
        device = next(iter(self.model.parameters())).device
        self.mixture.to(device)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """What is trained, by name."""
        return dict(self.router.tables.items())

    @property
    def count(self) -> int:
        """Number of trainable numbers."""
        return sum(value.numel() for value in self.parameters.values())

    def remove(self) -> None:
        """Take the mixture off: the model is what it was."""
        self.mixture.remove()


class RouterTask(LoraTask):
    """The loss of a router: that of a LoRA, and terms that spread tokens and make choices certain.

    Args:
        balance: weight of spreading tokens evenly over the LoRAs; 0 for data that need them unevenly.
        certainty: weight of the entropy of the choices, after a fifth of the steps.
        steps: optimizer steps of the run times its micro-batches; None where they are not known: then from the start.
        given: further arguments of :class:`genkit.training.lora.task.LoraTask`.
    """

    adapter: Any  # a RouterAdapter

    def __init__(self, *given: Any, balance: float = 0.01, certainty: float = 0.01, steps: int | None = None):
        super().__init__(*given)
        self.mixture: nn.Module = self.adapter.mixture
        self.balance, self.certainty = balance, certainty
        self.start = 0 if steps is None else int(_START * steps)

    def forward(self, batch: Batch, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
        """See :meth:`LoraTask.forward`."""
        router = self.adapter.router
        router.seen = []
        try:
            loss, figures = super().forward(batch, number, rank)
            # Recomputed passes of gradient checkpointing come later and must not count again.
            chances, router.seen = router.seen, None
        finally:
            router.seen = None
        sharp = self.certainty if number >= self.start else 0.0
        terms = [routing_loss(chance, self.balance, sharp) for chance in chances]
        loss = loss + torch.stack(terms).mean()
        with torch.no_grad():
            figures |= _shares(chances, router)
        return loss, figures


def _shares(chances: Sequence[torch.Tensor], router: Router) -> dict[str, float]:
    """Share of the tokens that take each LoRA, over all layers."""
    first = torch.cat([chance.argmax(-1) for chance in chances])
    names = [f"lora {number}" for number in range(router.experts)] + ["none"] * router.none
    return {f"takes {name}": float((first == number).float().mean()) for number, name in enumerate(names)}


def router_files(adapter: RouterAdapter, home: Path, **facts: Any) -> Export:
    """What writes the present router into a folder.

    Args:
        adapter: whose router it is.
        home: folder of the finished run, from which the LoRA files are named.
        facts: further fields of :class:`genkit.lora.mixture.files.RouterFacts`.
    """

    def write(folder: Path) -> None:
        save_router(folder, adapter.router, adapter.loras, adapter.experts, home, **facts)

    return write
