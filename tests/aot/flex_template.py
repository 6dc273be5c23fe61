"""FlexAttention's own Triton templates, rendered as torch's compiler would for a target and compiled by the same
Triton: what the static tables hold our kernels against. Nothing of them is kept here; they are read from
the installed torch.

The placeholders of the templates are filled in by this file for one call: bf16, (B, N, H, D) in memory, lengths that
blocks of 128 divide, full blocks and such with a mask of windows on three axes, tiles and stages that torch
takes by default.
"""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jinja2
import torch
from torch._inductor.kernel.flex.common import load_flex_template
from torch._inductor.template_heuristics import triton as heuristics

from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile

LENGTH, HEADS, BLOCK, WIDTH = 1024, 4, 128, 8
PARTS = {
    "forward": ("flex_attention", ("utilities", "common")),
    "backward": ("flex_backwards", ("utilities",)),
}
_numbers = itertools.count()
_folder = tempfile.TemporaryDirectory()


class _Placeholders:
    """What the templates ask for by name."""

    def __init__(self, options: dict[str, Any], dim: int, out: str):
        self.options, self.out = options, out
        self.tokens = (HEADS * LENGTH * dim, dim, HEADS * dim, 1)  # strides of (B, H, N, D)
        self.shape = (1, HEADS, LENGTH, dim)
        blocks = LENGTH // BLOCK
        self.lists = {"BLKS": (1, HEADS, blocks), "IDX": (1, HEADS, blocks, blocks)}
        self.arguments: tuple[str, ...] = ()

    def def_kernel(self, *names: str) -> str:
        """Head of the kernel, with the output and the coordinates of tokens behind the template's arguments."""
        self.arguments = (*names, self.out, "PLACES")
        lines = [self.gen_defines(), *(f"{name} = arg_{name}" for name in names)]
        return f"@triton.jit\ndef kernel({self.gen_argdefs()}):\n    " + _indent("\n".join(lines), 1)

    def gen_argdefs(self) -> str:
        """Arguments handed on to other functions."""
        return ", ".join(f"arg_{name}" for name in self.arguments)

    def gen_defines(self) -> str:
        """Options as constants."""
        return "\n".join(f"{name}: tl.constexpr = {value}" for name, value in self.options.items())

    def _list(self, name: str) -> tuple[int, ...]:
        return self.lists[name.rsplit("_", 1)[1]]

    def size(self, name: str, axis: int) -> str:
        """Length of an axis of an argument."""
        return str((self._list(name) if name.endswith(("BLKS", "IDX")) else self.shape)[axis])

    def stride(self, name: str, axis: int | None = None) -> str:
        """Stride of one axis of an argument, or all of them."""
        if name.endswith(("BLKS", "IDX")):
            shape = self._list(name)
            return str(torch.Size(shape[axis + 1 :]).numel())
        return str(self.tokens[axis]) if axis is not None else ", ".join(map(str, self.tokens))

    def modification(self, output_name: str | None, **names: Any) -> str:
        """Scores and their gradients as they are; windows of places on three axes as a mask."""
        if output_name is None:  # gradients of what a score function captures: nothing here
            return "pass"
        if output_name == "post_mod_scores":
            return f"post_mod_scores = {names['score']}"
        if output_name == "grad_scores":
            return f"grad_scores = {names['grad_score_mod']}"
        near = "(tl.abs(tl.load(arg_PLACES + {axis} + {m}) - tl.load(arg_PLACES + {axis} + {n})) <= {width})"
        terms = (near.format(axis=LENGTH * a, width=WIDTH, m=names["m"], n=names["n"]) for a in range(3))
        return f"{output_name} = {' & '.join(terms)}"

    def store_output(self, index: tuple[str, ...], value: str, mask: str, indent_width: int = 4, **_: Any) -> str:
        """The last line."""
        place = " + ".join(f"{name} * {stride}" for name, stride in zip(index, self.tokens, strict=True))
        return f"tl.store(arg_{self.out} + {place}, {value}.to(arg_{self.out}.dtype.element_ty), mask={mask})"


def _indent(text: str, levels: int) -> str:
    return text.replace("\n", "\n" + "    " * levels)


def default_tiles(arch: str, dim: int) -> dict[str, Tile]:
    """Tiles that torch takes by default: of the forward pass, of dQ and of dK/dV."""
    digits = arch.removeprefix("sm_").removeprefix("gfx")
    hip = arch.startswith("gfx")
    capability = (int(digits[0]), int(digits[1])) if hip else (int(digits[:-1]), int(digits[-1]))
    with patch.object(torch.cuda, "get_device_capability", lambda *_: capability):
        with patch.object(heuristics, "get_default_kpack", lambda: 1, create=True):
            chosen = heuristics.ROCmConfigHeuristic() if hip else heuristics.CUDAConfigHeuristic()
            one = chosen.get_flex_attn_fwd_configs(dim, torch.bfloat16)[0]
            two = chosen.get_flex_attn_bwd_configs(dim, torch.bfloat16)[0]
    return {
        "forward": Tile(one.block_m, one.block_n, one.num_warps, one.num_stages),
        "dkv": Tile(two.block_m1, two.block_n1, two.num_warps, two.num_stages),
        "dq": Tile(two.block_m2, two.block_n2, two.num_warps, two.num_stages),
    }


def compile_template(arch: str, dim: int, which: str, tma: bool = False):
    """The compiled ``"forward"`` or ``"backward"`` template."""
    tiles = default_tiles(arch, dim)
    tile = tiles["forward" if which == "forward" else "dq"]
    options: dict[str, Any] = {
        "PRESCALE_QK": False, "ROWS_GUARANTEED_SAFE": False, "BLOCKS_ARE_CONTIGUOUS": False, "WRITE_DQ": True,
        "OUTPUT_LOGSUMEXP": True, "OUTPUT_MAX": False, "FLOAT32_PRECISION": "'ieee'", "IS_DIVISIBLE": True,
        "SM_SCALE": dim**-0.5, "GQA_SHARED_HEADS": 1, "HAS_FULL_BLOCKS": True, "QK_HEAD_DIM": dim,
        "QK_HEAD_DIM_ROUNDED": dim, "V_HEAD_DIM": dim, "V_HEAD_DIM_ROUNDED": dim, "SAFE_HEAD_DIM": True,
        "USE_TMA": tma, "INDEX_DTYPE": "tl.int32",
        "SPARSE_Q_BLOCK_SIZE": BLOCK, "SPARSE_KV_BLOCK_SIZE": BLOCK,
    }  # fmt: skip
    if which == "forward":
        options |= {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
    else:
        one, two = tiles["dkv"], tiles["dq"]
        options |= {"BLOCK_M1": one.queries, "BLOCK_N1": one.keys, "BLOCK_M2": two.queries, "BLOCK_N2": two.keys}
    filled = _Placeholders(options, dim, "OUT" if which == "forward" else "DK")
    kernel = _load(_render(which, filled)).kernel
    given = [_argument(name, filled) for name in filled.arguments]
    return kernel.warmup(*given, grid=(1, 1, HEADS), num_warps=tile.warps, num_stages=tile.stages)


def _render(which: str, filled: _Placeholders) -> str:
    name, helpers = PARTS[which]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["indent_except_first"] = _indent
    source = load_flex_template(name) + "".join(load_flex_template(part) for part in helpers)
    hooks = ("def_kernel", "gen_argdefs", "gen_defines", "size", "stride", "modification", "store_output")
    text = environment.from_string(source).render(**filled.options, **{hook: getattr(filled, hook) for hook in hooks})
    return f"import triton\nimport triton.language as tl\n\n\n{text}\n"


def _load(source: str):
    """A module of a file: Triton reads a kernel's source from where it stands."""
    path = Path(_folder.name) / f"flex_{next(_numbers)}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _argument(name: str, filled: _Placeholders) -> torch.Tensor:
    if name.endswith(("BLKS", "IDX")) or name == "PLACES":
        return torch.zeros(3 * LENGTH, dtype=torch.int32)
    if name in ("LSE", "DELTA", "MAX"):
        return torch.zeros(HEADS * LENGTH)
    return torch.zeros(filled.shape, dtype=torch.bfloat16)
