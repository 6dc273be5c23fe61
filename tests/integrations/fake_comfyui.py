"""As much of ComfyUI as a node that overrides attention meets, by its documented calls; the real one is tested in
``test_comfyui_real.py`` where it is at hand.

* attention functions take (q, k, v, heads, mask, attn_precision, skip_reshape, skip_output_reshape, **kwargs) and hand
  themselves to ``transformer_options["optimized_attention_override"]`` if there is one;
* ``ModelPatcher.clone`` copies ``model_options`` deeply;
* ``BaseModel.apply_model`` goes through the wrappers of kind "apply_model".
"""

from __future__ import annotations

import copy
import types
from typing import Any

import torch

APPLY_MODEL = "apply_model"


def modules() -> dict[str, types.ModuleType]:
    """What ``import comfy.patcher_extension`` finds."""
    package, extension = types.ModuleType("comfy"), types.ModuleType("comfy.patcher_extension")
    extension.WrappersMP = types.SimpleNamespace(APPLY_MODEL=APPLY_MODEL)
    package.patcher_extension = extension
    return {"comfy": package, "comfy.patcher_extension": extension}


def attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """``optimized_attention``: asks the override unless it is called from one."""
    options = kwargs.get("transformer_options") or {}
    if "_inside_attn_wrapper" not in kwargs and "optimized_attention_override" in options:
        return options["optimized_attention_override"](plain, *args, _inside_attn_wrapper=True, **kwargs)
    return plain(*args, **kwargs)


def plain(
    q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs
) -> torch.Tensor:
    """Dense attention."""
    if not skip_reshape:
        width = q.shape[-1] // heads
        q, k, v = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=kwargs.get("scale"), enable_gqa=kwargs.get("enable_gqa", False)
    )
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class Executor:
    """Calls wrappers from the outermost to the function itself."""

    def __init__(self, function, class_obj, wrappers):
        self.function, self.class_obj, self.wrappers = function, class_obj, wrappers

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.function(*args, **kwargs)
        return self.wrappers[0](Executor(self.function, self.class_obj, self.wrappers[1:]), *args, **kwargs)


class Sampling:
    """Flow matching: the noise level is what is left of the run."""

    @staticmethod
    def percent_to_sigma(percent: float) -> float:
        return 1.0 - percent


class BaseModel:
    """What ComfyUI wraps around a diffusion model."""

    def __init__(self, diffusion_model: torch.nn.Module):
        self.diffusion_model, self.model_sampling = diffusion_model, Sampling()

    def apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
    ) -> torch.Tensor:
        wrappers = transformer_options.get("wrappers", {}).get(APPLY_MODEL, {})
        chain = [wrapper for several in wrappers.values() for wrapper in several]
        run = Executor(self._apply_model, self, chain)
        return run(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _apply_model(self, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        return self.diffusion_model(x, c_crossattn, transformer_options, **kwargs)


class ModelPatcher:
    """A model with options; clones share the weights."""

    def __init__(self, model: BaseModel):
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> ModelPatcher:
        made = ModelPatcher(self.model)
        made.model_options = copy.deepcopy(self.model_options)
        return made

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        wrappers = self.model_options["transformer_options"].setdefault("wrappers", {})
        wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def run(self, x: torch.Tensor, sigma: float = 0.5, text: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """One model call, as the sampler makes it."""
        options = copy.copy(self.model_options["transformer_options"])
        with torch.no_grad():
            t = torch.full((len(x),), sigma)
            return self.model.apply_model(x, t, c_crossattn=text, transformer_options=options, **kwargs)


class Blocks(torch.nn.Module):
    """A transformer on the tokens of a latent: ``order`` of its segments, cross-attention if they have no text."""

    def __init__(self, order: tuple[str, ...], blocks: dict[str, int], channels: int, heads: int = 2):
        super().__init__()
        self.order, self.heads, self.patch_size = order, heads, (1, 1, 1)
        self.tells = True  # whether it tells the number of the block that runs
        self.form: dict[str, Any] = {}  # more arguments of self-attention
        for name, count in blocks.items():
            made = [torch.nn.Linear(channels, 3 * channels) for _ in range(count)]
            setattr(self, name, torch.nn.ModuleList(made))
        self.names = tuple(blocks)

    def forward(self, x, text, options, **conditions):
        latents = {"grid": [x], **{name: value for name, value in conditions.items() if name in self.order}}
        parts = {"text": text} | {
            name: torch.cat([one.flatten(2).transpose(1, 2) for one in several], 1) for name, several in latents.items()
        }
        found = [name for name in self.order if parts.get(name) is not None]
        lengths = [parts[name].shape[1] for name in found]
        h = torch.cat([parts[name] for name in found], 1)
        for kind, name in zip(("double", "single"), self.names, strict=False):
            for index, layer in enumerate(getattr(self, name)):
                if self.tells:
                    options |= {"block_type": kind, "block_index": index, "total_blocks": len(getattr(self, name))}
                q, k, v = layer(h).chunk(3, -1)
                h = h + self.attend(q, k, v, conditions.get("attention_mask"), options)
                if "text" not in found and text is not None:
                    h = h + attention(h, text, text, self.heads, transformer_options=options)
        return h.split(lengths, 1)[found.index("grid")]

    def attend(self, q, k, v, mask, options):
        if self.form.get("skip_reshape"):
            q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = attention(q, k, v, self.heads, mask=mask, transformer_options=options, **self.form)
        return out.transpose(1, 2).flatten(2) if self.form.get("skip_output_reshape") else out


class WanModel(Blocks):
    """Self-attention over the grid, cross-attention to the text."""

    def __init__(self, blocks: int = 3):
        super().__init__(("grid",), {"blocks": blocks}, 16)


class Flux(Blocks):
    """Text, picture and references in one sequence; double blocks, then single ones."""

    def __init__(self):
        super().__init__(("text", "grid", "ref_latents"), {"double_blocks": 2, "single_blocks": 2}, 16)
        self.patch_size = 1


class UNetModel(torch.nn.Module):
    """Two levels of a picture, told in ``activations_shape``."""

    class BasicTransformerBlock(torch.nn.Linear):
        pass

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(UNetModel.BasicTransformerBlock(16, 48) for _ in range(2))

    def forward(self, x, text, options):
        for layer in self.layers:
            options["activations_shape"] = list(x.shape)
            q, k, v = layer(x.flatten(2).transpose(1, 2)).chunk(3, -1)
            out = attention(q, k, v, 2, transformer_options=options)
            x = torch.nn.functional.avg_pool2d(x + out.transpose(1, 2).unflatten(2, x.shape[2:]), 2)
        return x


WanModel.__module__ = "comfy.ldm.wan.model"
Flux.__module__ = "comfy.ldm.flux.model"
UNetModel.__module__ = "comfy.ldm.modules.diffusionmodules.openaimodel"


def patcher(model: torch.nn.Module) -> ModelPatcher:
    """A ModelPatcher over a model with seeded weights."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return ModelPatcher(BaseModel(model.eval()))
