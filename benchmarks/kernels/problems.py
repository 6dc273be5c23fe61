"""The registered problems: random blocks, and plans of real methods at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from genkit.kernels import BlockPlan
from genkit.layout import TokenLayout


@dataclass(frozen=True)
class Problem:
    """Attention of ``heads`` heads of ``dim`` channels; ``plan`` builds what is visited, on a device."""

    name: str
    tokens: int
    heads: int
    dim: int
    plan: Callable[[torch.device], BlockPlan]
    large: bool = False


def random_blocks(tokens: int, heads: int, share: float, block_q: int = 128, block_k: int = 64, seed: int = 0):
    """Builder of a plan with the same number of random blocks in every row, other ones in every head."""

    @cache
    def chosen() -> torch.Tensor:
        rows, columns = -(-tokens // block_q), -(-tokens // block_k)
        generator = torch.Generator().manual_seed(seed)
        rank = torch.rand(1, heads, rows, columns, generator=generator).argsort(-1)
        return rank[..., : max(1, round(share * columns))]

    def build(device: torch.device) -> BlockPlan:
        return BlockPlan.from_indices(chosen().to(device), tokens, tokens, block_q=block_q, block_k=block_k)

    return build


def of_method(name: str, layout: TokenLayout, **options):
    """Builder of the plan that a method makes of a layout."""

    def build(device: torch.device) -> BlockPlan:
        from genkit.attention import registry

        plan = registry.method_class(name)(**options).build_plan(layout, device).plan
        if plan is None:
            raise SystemExit(f"{name} is dense on {layout.grid}: not a sparse problem")
        return plan

    return build


# (name, grid, text tokens, heads, head dim)
MODELS = {
    "wan2.1-1.3b-480p": ((21, 30, 52), 0, 12, 128),
    "wan2.1-1.3b-720p": ((21, 45, 80), 0, 12, 128),
    "hunyuan-720p": ((33, 45, 80), 256, 24, 128),
    "flux-1k": ((1, 64, 64), 512, 24, 128),
    "flux-2k": ((1, 128, 128), 512, 24, 128),
    "flux-4k": ((1, 256, 256), 512, 24, 128),
}


def problems() -> dict[str, Problem]:
    """All problems by name."""
    found = {}

    def add(name: str, tokens: int, heads: int, dim: int, plan, large: bool = False) -> None:
        found[name] = Problem(name, tokens, heads, dim, plan, large)

    for tokens, dim in ((8192, 64), (8192, 128), (32768, 64), (32768, 128), (65536, 128)):
        for share in (0.1, 0.25, 0.5, 1.0):
            name = f"random-{tokens}-d{dim}-{share:.0%}"
            add(name, tokens, 8, dim, random_blocks(tokens, 8, share), large=tokens > 32768)
    for model, (grid, text, heads, dim) in MODELS.items():
        layout = TokenLayout.of_grid(*grid, text=text)
        large = layout.length > 60000
        add(f"{model}-neighborhood", layout.length, heads, dim, of_method("neighborhood", layout), large)
        if grid[0] > 1:
            add(f"{model}-radial", layout.length, heads, dim, of_method("radial", layout), large)
    return found
