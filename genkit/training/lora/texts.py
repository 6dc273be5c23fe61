"""The texts of samples, encoded once: later calls of the pipeline need no text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

ENCODE = "encode_prompt"
#: Beginning of the names of text encoders among a pipeline's parts.
_ENCODERS = "text_encoder"


class _Reached(BaseException):
    """A pipeline has come to its denoiser; no error, so that nothing on the way takes it for one."""


class Texts:
    """What a pipeline's ``encode_prompt`` has returned, by its arguments.

    Args:
        pipeline: with its text encoders, before anything is patched.
        live: nothing is kept, as the text encoders learn.
    """

    def __init__(self, pipeline: Any, live: bool = False):
        self.pipeline = pipeline
        self._live = live
        self._known: dict[str, Any] = {}
        self._whole = True

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the block the pipeline's ``encode_prompt`` answers from what it has returned before."""
        own = getattr(self.pipeline, ENCODE, None)
        if own is None or self._live:
            self._whole = False
            yield
            return

        def encode_prompt(*args: Any, **named: Any) -> Any:
            key = _key((args, named))
            if key is None:
                self._whole = False
                return own(*args, **named)
            if key not in self._known:
                self._known[key] = own(*args, **named)
            return self._known[key]

        setattr(self.pipeline, ENCODE, encode_prompt)
        try:
            yield
        finally:
            delattr(self.pipeline, ENCODE)

    def reach_denoiser(self, call: Callable[[], Any]) -> None:
        """Call a pipeline until it uses a denoiser for the first time."""
        from genkit.patching.targets import find_denoisers

        def reached(*_: Any) -> None:
            raise _Reached

        hooks = [each.model().register_forward_pre_hook(reached) for each in find_denoisers(self.pipeline)]
        scheduler = self.pipeline.scheduler
        state = dict(vars(scheduler))
        try:
            call()
        except _Reached:
            pass
        finally:
            vars(scheduler).clear()
            vars(scheduler).update(state)
            for hook in hooks:
                hook.remove()

    def release(self) -> None:
        """Let go of the text encoders where every text that was asked for is known."""
        if not (self._whole and self._known):
            return
        for name, part in self.pipeline.components.items():
            if name.startswith(_ENCODERS) and isinstance(part, nn.Module):
                setattr(self.pipeline, name, None)


def _key(value: Any) -> str | None:
    """Arguments as one text; None where they hold what a text cannot tell apart."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Mapping):
        parts = [(name, _key(part)) for name, part in sorted(value.items())]
        return None if any(part is None for _, part in parts) else repr(parts)
    if isinstance(value, list | tuple):
        inner = [_key(part) for part in value]
        return None if None in inner else repr(inner)
    return None
