"""Which of a run's LoRAs are mixed token by token, and how, as a user asks for it: a router's file, or masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError, counted, explain
from genkit.lora.files import Lora
from genkit.lora.mixture.files import apply_router, experts_of, loras_of, read_router
from genkit.media.read_image import read_image
from genkit.reading.files import place

if TYPE_CHECKING:
    from genkit.lora.mixture.mix import Mixture

_DENOISERS = ("transformer", "unet")


@dataclass(frozen=True)
class Mixing:
    """LoRAs that are mixed.

    Args:
        loras: the files, in the order of the router or of the masks.
        router: a trained router, or None.
        masks: pictures, white where the LoRA of the same place acts; empty with a router.
    """

    loras: tuple[Lora, ...]
    router: Path | None = None
    masks: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls, loras: Sequence[Lora], router: str | None, masks: Sequence[str]
    ) -> tuple[Mixing | None, tuple[Lora, ...]]:
        """What is mixed, and the LoRAs that act everywhere.

        Raises:
            UsageError: a router and masks together, or not one mask for each LoRA. ArtifactError: files that are not
            there or do not belong together.
        """
        if router is None and not masks:
            return None, tuple(loras)
        if router is not None and masks:
            raise UsageError("--lora-router and --lora-mask both say where LoRAs act; give one of them")
        if router is not None:
            path = Path(router).expanduser()
            chosen, others = loras_of(path, loras)
            return cls(chosen, path), others
        if len(masks) != len(loras):
            raise UsageError(
                explain(
                    "--lora-mask", counted(len(masks), "picture"), f"one for each of the {counted(len(loras), 'LoRA')}"
                )
            )
        paths = tuple(Path(mask).expanduser() for mask in masks)
        for path in paths:
            read_image(path, what="--lora-mask")
        return cls(tuple(loras), None, paths), ()

    @property
    def files(self) -> list[Path]:
        """All files that decide the result."""
        return [lora.path for lora in self.loras] + list(self.masks) + ([] if self.router is None else [self.router])

    def check(self, outline: Any) -> None:
        """Match everything with a pipeline without values; raises what :meth:`apply` would."""
        experts_of(outline, self.loras, self._component(outline))

    def apply(self, pipeline: Any) -> Mixture:
        """Put the mixture on a loaded pipeline; returned with ``remove()``."""
        if self.router is not None:
            return apply_router(pipeline, self.router, self.loras)
        import torch

        from genkit.lora.mixture.gates import Masks
        from genkit.lora.mixture.mix import Mixture

        component = self._component(pipeline)
        masks = [torch.from_numpy(read_image(path, most=1).frames[0]).float().mean(-1) / 255 for path in self.masks]
        return Mixture(getattr(pipeline, component), experts_of(pipeline, self.loras, component), Masks(masks))

    def _component(self, pipeline: Any) -> str:
        if self.router is not None:
            found = read_router(self.router).component
            if getattr(pipeline, found, None) is None:
                raise UsageError(f"{place(self.router)} is for the {found}, which {type(pipeline).__name__} lacks")
            return found
        return next(name for name in _DENOISERS if getattr(pipeline, name, None) is not None)
