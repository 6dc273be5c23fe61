"""What attention layers put out, before the projection that follows: of a model's chosen layers, call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from genkit.errors import UsageError
from genkit.patching.targets import find_denoisers


def watched_layers(model: Any, every: int, roles: Sequence[str] | None = None) -> tuple[str, ...]:
    """Paths of the attention modules whose outputs are compared.

    As in CLEAR: layers are numbered through the model, single-stream blocks after double-stream ones, and of the
    single-stream ones those count whose number is a multiple of ``every``. Models whose blocks are all of one kind have
    no such difference.

    Args:
        model: a denoiser.
        every: distance of the layers.
        roles: kinds of attention; None for self-attention and joint attention.

    Raises:
        UsageError: no layer has such a number.
    """
    (denoiser,) = find_denoisers(model)
    wanted = ("self", "joint", "spatial", "temporal") if roles is None else tuple(roles)
    sites = [(denoiser.layer(site)[0], site) for site in denoiser.sites if site.role in wanted]
    single = [each for each in sites if _projection(each[1].module) is None]
    chosen = tuple(site.path for number, site in single or sites if number % every == 0)
    if not chosen:
        numbers = [number for number, _ in single or sites]
        raise UsageError(
            f"--feature-every {every}: none of the layers {', '.join(map(str, numbers))} has a number that it divides; "
            f"give a smaller one, such as 1, or --feature-weight 0"
        )
    return chosen


def _projection(module: Any) -> Any:
    """The layer behind the attention of a module; None where the module ends with its attention."""
    out = getattr(module, "to_out", None)
    if isinstance(out, (nn.ModuleList, nn.Sequential)):
        out = out[0] if len(out) else None
    return out if isinstance(out, nn.Module) else None


class Outputs:
    """The outputs of one call of a model, heads side by side. In double-stream blocks those of the picture alone.

    Args:
        model: the denoiser; its forward is followed until :meth:`remove`.
        paths: of attention modules.
    """

    def __init__(self, model: Any, paths: Sequence[str]):
        self._found: dict[str, torch.Tensor] = {}
        self._open = False
        self._paths = tuple(paths)
        self._hooks = [self._hook(path, model.get_submodule(path)) for path in paths]

    def _hook(self, path: str, module: Any) -> Any:
        behind = _projection(module)
        if behind is not None:
            return behind.register_forward_pre_hook(lambda _, args: self._keep(path, args[0]))
        keep: Callable[[Any, Any, Any], None] = lambda _, args, out: self._keep(  # noqa: E731
            path, out[0] if isinstance(out, tuple) else out
        )
        return module.register_forward_hook(keep)

    def _keep(self, path: str, value: torch.Tensor) -> None:
        if self._open:
            self._found[path] = value

    @contextmanager
    def kept(self) -> Iterator[list[torch.Tensor]]:
        """A list that holds the outputs of the call within the block, layer by layer, when the block is left.

        Outside of it nothing is kept: gradient checkpointing calls the layers again in the backward pass.
        """
        found: list[torch.Tensor] = []
        self._open = True
        try:
            yield found
            found += [self._found[path] for path in self._paths]
        finally:
            self._open, self._found = False, {}

    def remove(self) -> None:
        """Leave the model alone."""
        for hook in self._hooks:
            hook.remove()
