"""The attention of a model while it inpaints: PAIntA's factors and the maps RASG reads, as rules of a control."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from genkit.control import Control, ReadMaps, ScaleKeys, Where
from genkit.control.regions import Seen
from genkit.control.spans import text_parts, token_offsets
from genkit.editing.hd_painter.known import token_mask
from genkit.editing.hd_painter.painta import BlockScores, prompt_attention, scale_of_keys
from genkit.editing.hd_painter.rasg import as_noise, attention_score
from genkit.editing.shared.model import EditModel
from genkit.errors import UnsupportedError

PROMPT = "prompt"
Grid = tuple[int, int]


class PromptAttention:
    """What PAIntA and RASG put on a model for one run; use as a context.

    Args:
        model: whose denoiser it is.
        prompt: what is asked for.
        unknown: (1, 1, h, w) 1 where latents are made anew.
        painta: share of the steps, from the first on, in which PAIntA acts; 0 leaves it out.
        rasg: whether maps are read for RASG.
        slots: text tokens of encoders that leave their number open.

    Raises:
        UnsupportedError: a denoiser that the asked-for part does not fit.
    """

    def __init__(
        self, model: EditModel, prompt: str, unknown: torch.Tensor, painta: float, rasg: bool, slots: int | None
    ):
        self.unknown, self.painta = unknown, painta
        self.network = model.network(1.0)
        self.tokens = prompt_tokens(model.pipe, prompt, slots)
        self.joint = any(found.role == "joint" for found in model.family.find_sites(self.network))
        if rasg and (self.joint or model.flow):
            raise UnsupportedError(
                f"RASG steers by cross-attention and by the noise of a diffusion's steps; {type(model.pipe).__name__} "
                "has joint attention or is a flow model; leave RASG out"
            )
        size = (unknown.shape[-2], unknown.shape[-1])
        self.grids = () if self.joint else unet_grids(size, self.network.config)
        self.scores: BlockScores | None = None
        rules: list[Any] = []
        if painta:
            rules.append(self._painta())
        if rasg:
            where = Where(roles="cross", grids=self.grids[-1:], conditional=True, keys="text")
            rules.append(ReadMaps(name=PROMPT, tokens=self.tokens, kind="logits", grad=True, where=where))
        self.rules = rules
        self.control: Control | None = None

    def _painta(self) -> ScaleKeys:
        if self.joint:
            where = Where(roles="joint", stop=self.painta, conditional=True)
            return ScaleKeys(factor=self._joint_factor, queries=self._unknown_tokens, where=where)
        where = Where(roles="self", grids=self.grids, stop=self.painta)
        return ScaleKeys(factor=self._block_factor, queries=self._unknown_tokens, where=where)

    def _unknown_tokens(self, seen: Seen) -> torch.Tensor:
        _, height, width = seen.site.layout.grid
        return token_mask(self.unknown, (height, width)).cpu()

    def _block_factor(self, seen: Seen) -> torch.Tensor:
        """Of a UNet's block: the same for all rows, from those with the prompt."""
        assert self.scores is not None
        _, height, width = seen.site.layout.grid
        scores = self.scores.found[seen.site.name]
        unknown = token_mask(self.unknown, (height, width))
        factor = scale_of_keys(scores, unknown, (height, width))
        return factor.repeat(len(seen.q) // len(scores), 1)

    def _joint_factor(self, seen: Seen) -> torch.Tensor:
        """Of joint attention: from the picture's queries and the text's keys of the same call, rows with the prompt."""
        layout = seen.site.layout
        assert layout.text_span is not None, "joint attention has text"
        (first, last), (start, stop) = layout.text_span, layout.grid_span
        _, height, width = layout.grid
        rows = list(seen.rows.index(seen.rows.roles[0], conditional=True))
        scale = seen.site.scale or seen.q.shape[-1] ** -0.5
        queries, keys = seen.q[rows, start:stop].detach(), seen.k[rows, first:last].detach()
        scores = prompt_attention(queries, keys, self.tokens, scale)
        return scale_of_keys(scores, token_mask(self.unknown, (height, width)), (height, width))

    def begin(self, *, step: int, steps: int, rows: Any) -> None:
        """As :meth:`genkit.control.Control.begin`."""
        if self.scores is not None:
            self.scores.active = step < self.painta * steps
        if self.control is not None:
            self.control.begin(step=step, steps=steps, rows=rows)

    def gradient(self, latents: torch.Tensor) -> torch.Tensor:
        """Where latents must move for the prompt to look at the mask, of the size of noise; after a call with them."""
        assert self.control is not None
        maps = self.control.maps.latest(PROMPT).flatten(1, 3)  # (rows, tokens of the picture, tokens of the prompt)
        score = attention_score(maps, token_mask(self.unknown, self.grids[-1]))
        (found,) = torch.autograd.grad(score, latents)
        return as_noise(found)

    def __enter__(self) -> PromptAttention:
        if self.rules:
            self.control = Control(self.network, self.rules)
        if self.painta and not self.joint:
            grids = {height * width for height, width in self.grids}
            self.scores = BlockScores(self.network, self.tokens, grids, slice(-1, None))
        return self

    def __exit__(self, *_: object) -> None:
        if self.scores is not None:
            self.scores.remove()
        if self.control is not None:
            self.control.remove()


def unet_grids(size: Grid, config: Any) -> tuple[Grid, ...]:
    """Token grids at a half and a quarter of the latents' sides (32 and 16 tokens of Stable Diffusion at 512 pixels),
    as far as a UNet attends there; else the coarsest at which it does. The coarsest comes last.

    Args:
        size: height and width of the latents.
        config: of the UNet.
    """
    kinds = config.down_block_types
    attends = {level for level, kind in enumerate(kinds) if "CrossAttn" in kind}
    if "CrossAttn" in (config.get("mid_block_type") or ""):
        attends.add(len(kinds) - 1)
    grids = [size]
    for _ in kinds[1:]:
        height, width = grids[-1]
        grids.append(((height + 1) // 2, (width + 1) // 2))
    chosen = sorted(attends & {1, 2}) or [max(attends)]
    return tuple(grids[level] for level in chosen)


def prompt_tokens(pipe: Any, prompt: str, slots: int | None = None) -> tuple[int, ...]:
    """Positions of a prompt's words among the denoiser's text tokens, and of the end mark of CLIP's texts, which has
    read them all. Padding and start marks are left out.

    Raises:
        UsageError: a pipeline whose way of reading prompts is not known.
    """
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    found: list[int] = []
    for part in text_parts(pipe, slots):
        begin = part.template.index("{}")
        offsets = token_offsets(part.tokenizer, part.template.replace("{}", prompt))
        limit = part.length or len(offsets)
        inside = [
            number - part.dropped
            for number, (first, last) in enumerate(offsets)
            if last > first and first >= begin and last <= begin + len(prompt)
        ]
        if inside and isinstance(part.tokenizer, (CLIPTokenizer, CLIPTokenizerFast)):
            inside.append(inside[-1] + 1)
        found += [part.start + min(number, limit - 1) for number in inside]
    return tuple(dict.fromkeys(found))


@contextmanager
def frozen(network: torch.nn.Module) -> Iterator[None]:
    """Gradients with respect to inputs only: nothing is kept for those of the weights."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
