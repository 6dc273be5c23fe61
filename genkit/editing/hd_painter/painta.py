"""PAIntA: prompt-aware introverted attention. Unknown tokens read known ones as far as those agree with the prompt.

The scores of unknown queries are multiplied by a factor per known key: how much attention that token pays to the
prompt, in the same block's cross-attention. A factor of 0 makes a score 0; it hides nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

#: One axis of the 3x3 kernel that smooths prompt scores; the published code's, which is no Gaussian of a round sigma.
KERNEL = (0.211942, 0.576117, 0.211942)


def smoothed(scores: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Scores (B, N) of the tokens of a grid (h, w) averaged with their neighbours; outside of the grid is zero."""
    axis = scores.new_tensor(KERNEL)
    kernel = torch.outer(axis, axis)[None, None]
    return functional.conv2d(scores.view(-1, 1, *grid), kernel, padding=1).flatten(1)


def key_factors(scores: torch.Tensor) -> torch.Tensor:
    """Factors in 0..1 from prompt scores (B, N): 0 up to the (lower) median, rising to 1 - median / largest."""
    middle = scores.median(-1, keepdim=True).values
    largest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    return ((scores - middle) / largest).clamp(0, 1)


def scale_of_keys(scores: torch.Tensor, unknown: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """What the scores of unknown queries are multiplied by, key by key.

    Args:
        scores: (B, N) attention that each token pays to the prompt.
        unknown: bool (N,).
        grid: (h, w) for smoothing the scores first; None leaves them.

    Returns:
        (B, N): 1 for unknown keys.
    """
    factors = key_factors(scores if grid is None else smoothed(scores, grid))
    return torch.where(unknown, torch.ones_like(factors), factors)


def prompt_attention(queries: torch.Tensor, keys: torch.Tensor, tokens: tuple[int, ...], scale: float) -> torch.Tensor:
    """Share of its attention that each query pays to some text tokens, mean over heads.

    Args:
        queries: (B, N, H, D).
        keys: (B, L, H, D) of the text.
        tokens: positions in the text.
        scale: of the scores.

    Returns:
        (B, N), float32.
    """
    logits = torch.einsum("bnhd,blhd->bhnl", queries.float(), keys.float()) * scale
    return logits.softmax(-1)[..., list(tokens)].sum(-1).mean(1)


class BlockScores:
    """Prompt scores of the transformer blocks of a UNet, made right before each block runs.

    A block's self-attention is to be scaled by what its cross-attention, which comes after it, says of the tokens. So
    a hook runs self-attention and the cross-attention's weights once before, for the rows with the prompt only. It sees
    the block's own input, which the attention modules do not: they get it normalised.

    Args:
        unet: with blocks of attn1 (self) and attn2 (cross).
        tokens: positions of the prompt in the text.
        grids: token counts of the blocks that are followed.
        conditional: rows of the batch with the prompt, as many as the others in the same order.
    """

    def __init__(self, unet: torch.nn.Module, tokens: tuple[int, ...], grids: set[int], conditional: slice):
        self.tokens, self.grids, self.conditional = tokens, grids, conditional
        self.active = True
        self.found: dict[str, torch.Tensor] = {}
        self._hooks = [
            module.register_forward_pre_hook(self._before(f"{name}.attn1"), with_kwargs=True)
            for name, module in unet.named_modules()
            if _is_block(module)
        ]

    def remove(self) -> None:
        """Follow the blocks no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.found = {}

    def _before(self, name: str) -> Any:
        def hook(block: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            text = kwargs.get("encoder_hidden_states")
            if not self.active or states.shape[1] not in self.grids or text is None:
                self.found.pop(name, None)
                return
            text = text[0] if isinstance(text, tuple) else text  # further entries are an adapter's pictures
            with torch.no_grad():
                self.found[name] = self._scores(block, states[self.conditional], text[self.conditional])

        return hook

    def _scores(self, block: Any, states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        states = states + _plain(block.attn1, block.norm1(states))
        cross = block.attn2
        text = cross.norm_encoder_hidden_states(text) if cross.norm_cross else text
        queries, keys = _heads(cross, cross.to_q(block.norm2(states))), _heads(cross, cross.to_k(text))
        return prompt_attention(queries, keys, self.tokens, cross.scale)


def _is_block(module: Any) -> bool:
    """Whether a module is a block as Stable Diffusion has it: plain layer norms, self- and then cross-attention."""
    parts = all(getattr(module, name, None) is not None for name in ("attn1", "attn2", "norm1", "norm2"))
    return parts and getattr(module, "norm_type", "layer_norm") == "layer_norm"


def _plain(attention: Any, states: torch.Tensor) -> torch.Tensor:
    """The module's own self-attention; outside of it, so that no method on its calls sees this one."""
    q, k, v = (_heads(attention, layer(states)) for layer in (attention.to_q, attention.to_k, attention.to_v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    return attention.to_out[0](out.transpose(1, 2).flatten(2)) / attention.rescale_output_factor


def _heads(attention: Any, x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (attention.heads, -1))
