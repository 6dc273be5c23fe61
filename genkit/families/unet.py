"""UNets over images: Stable Diffusion 1.5 and XL, DreamLite, and UNet2D without text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from genkit.families.base import Family, OpenLayout, SiteRule, Streams, shape
from genkit.families.codec import scaled
from genkit.families.facts import Objective, PipelineFacts, TextRule
from genkit.families.grids import unet_levels
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import ReadConfig, SizeRule
from genkit.layout import TEXT, Segment, TokenLayout


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, height, width = shape(args, "sample", 4, "UNet")
    return unet_levels(len(model.config.block_out_channels), height, width)


def _with_text(model: Any, args: Mapping[str, Any]) -> Streams:
    """The levels, and each of them after the text, whose length the call tells."""
    levels = _streams(model, args)
    both = {}
    for name, layout in levels.items():
        assert isinstance(layout, TokenLayout)
        both[f"{name}_text"] = OpenLayout(TokenLayout(layout.grid, (Segment(TEXT, 0), *layout.segments)), TEXT)
    return {**levels, **both}


def _asks_both(model: Any, path: str, module: Any) -> bool:
    return _added(module) and not module.only_cross_attention


def _asks_text(model: Any, path: str, module: Any) -> bool:
    return _added(module) and bool(module.only_cross_attention)


def _asks_itself(model: Any, path: str, module: Any) -> bool:
    return hasattr(module, "to_q") and not _added(module)


def _added(module: Any) -> bool:
    """Whether a module is attention with keys of the text beside its own."""
    return getattr(module, "add_k_proj", None) is not None


_LEVELS = ((r"(down|up)_blocks\.(\d+)\.", "{1}{2}"), (r"mid_block\.", "mid"))

#: Attention of transformer blocks, as in Stable Diffusion.
_TRANSFORMERS = (
    SiteRule(
        r"(down|up)_blocks\.(\d+)\.attentions\.\d+\.transformer_blocks\.\d+\.attn1",
        "self",
        queries="{1}{2}",
        keys=("text",),
        ask_module=True,
    ),
    SiteRule(
        r"(down|up)_blocks\.(\d+)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2",
        "cross",
        queries="{1}{2}",
        keys=("text", "image"),
        ask_module=True,
    ),
    SiteRule(
        r"mid_block\.attentions\.\d+\.transformer_blocks\.\d+\.attn1",
        "self",
        queries="mid",
        keys=("text",),
        ask_module=True,
    ),
    SiteRule(
        r"mid_block\.attentions\.\d+\.transformer_blocks\.\d+\.attn2",
        "cross",
        queries="mid",
        keys=("text", "image"),
        ask_module=True,
    ),
)
#: Attention without a transformer block around it: pixels ask the text and themselves (IF, Kandinsky 2, unCLIP), the
#: text alone, or themselves alone.
_ALONE = tuple(
    SiteRule(rf"{place}attentions\.\d+", role, queries=level, keys=keys, applies=which)
    for place, level in _LEVELS
    for role, keys, which in (
        ("joint", (f"{level}_text",), _asks_both),
        ("cross", ("text",), _asks_text),
        ("self", (), _asks_itself),
    )
)
#: Blocks of the latent upscaler, which has no middle.
_K_BLOCKS = tuple(
    SiteRule(rf"(down|up)_blocks\.(\d+)\.attentions\.\d+\.attn{number}", role, queries="{1}{2}", keys=keys)
    for number, role, keys in ((1, "self", ()), (2, "cross", ("text",)))
)


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(8, 1)


def _states(pipeline: Any, prompts: list[str], slots: int) -> Any:
    # CLIP has its own number of slots.
    return pipeline.encode_prompt(prompts, pipeline._execution_device, 1, do_classifier_free_guidance=False)[0]


FAMILY = Family(
    name="UNet2DCondition",
    classes=("UNet2DConditionModel",),
    pipelines=("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionImg2ImgPipeline"),
    rules=(*_TRANSFORMERS, *_ALONE, *_K_BLOCKS),
    streams=_with_text,
    reads=("sample",),
    sample="sample",
    order=("down_blocks", "mid_block", "up_blocks"),
    grid="sample (B, C, H, W), halved (rounding up) at every downsampling",
    text="apart",
    video=False,
    facts=PipelineFacts(
        pattern="StableDiffusion(?!3).*|LatentConsistencyModel.*",
        needs_input=r".*(?:Img2Img|Depth2Img|Inpaint|Edit|ControlNet|Adapter|Pix2Pix|Upscale).*",
        sizes=_sizes,
        codec=scaled("BCHW"),
        text=TextRule(("encoder_hidden_states",), 77, _states),
        objective=Objective(None, "index"),
        lora_targets=r".+\.attentions\.\d+\.transformer_blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
        architecture="stable-diffusion",
        inputs={
            r"StableDiffusion(?:XL)?ControlNet(?:XS|PAG)?Pipeline|StableDiffusion(?:XL)?AdapterPipeline": Inputs(
                takes={"image": (), "control": ("image",)}, needs=("control",), several=True
            ),
            r"StableDiffusion(?:ImageVariation|.*Upscale).*|StableUnCLIPImg2Img.*": Inputs(looks=True),
        },
        others={
            base + "Pipeline": (
                Other(base + "Img2ImgPipeline"),
                Other(base + "InpaintPipeline"),
                Other(base + "ControlNetPipeline", controlnet=True),
                Other(base + "ControlNetImg2ImgPipeline", controlnet=True),
                Other(base + "ControlNetInpaintPipeline", controlnet=True),
            )
            for base in ("StableDiffusion", "StableDiffusionXL")
        }
        | {"LatentConsistencyModelPipeline": (Other("LatentConsistencyModelImg2ImgPipeline"),)},
        tasks={
            "reference_pictures": "StableDiffusion(?!3|XL).*",
            "train_patch": "StableDiffusionPipeline",
            "train_reference": "StableDiffusionPipeline",
        },
    ),
    notes="Layers are numbered in the order of execution: down, middle, up. The pipelines compute both branches in one "
    "call and announce none. An image prompt adapter attends in further calls with keys named 'image'. In blocks "
    "without transformers (IF, Kandinsky 2, unCLIP) one attention asks the text, first, and the pixels.",
)

UNET_2D = Family(
    name="UNet2D",
    classes=("UNet2DModel",),
    pipelines=("DDPMPipeline", "DDIMPipeline", "LDMSuperResolutionPipeline", "ConsistencyModelPipeline"),
    rules=(
        SiteRule(r"(down|up)_blocks\.(\d+)\.attentions\.\d+", "self", queries="{1}{2}"),
        SiteRule(r"mid_block\.attentions\.\d+", "self", queries="mid"),
    ),
    streams=_streams,
    reads=("sample",),
    sample="sample",
    order=("down_blocks", "mid_block", "up_blocks"),
    grid="sample (B, C, H, W), halved (rounding up) at every downsampling",
    text="apart",
    video=False,
    facts=PipelineFacts(pattern="DDPMPipeline|DDIMPipeline|LDMSuperResolutionPipeline|ConsistencyModelPipeline"),
    notes="Layers are numbered in the order of execution: down, middle, up. No text and no guidance. No attention "
    "processors can be set, so use genkit.patch.",
)

DREAM_LITE = replace(
    FAMILY,
    name="DreamLite",
    classes=("DreamLiteUNetModel",),
    pipelines=("DreamLitePipeline", "DreamLiteMobilePipeline"),
    rules=_TRANSFORMERS,
    streams=_streams,
    facts=PipelineFacts(pattern="DreamLite.*", sizes=lambda config: SizeRule(8, 1)),
    notes="Layers are numbered in the order of execution: down, middle, up. Only the inner levels have self-attention. "
    "Both branches are computed in one call.",
)

FAMILIES = (FAMILY, UNET_2D, DREAM_LITE)
