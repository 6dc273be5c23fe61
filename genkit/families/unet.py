"""UNets over images: Stable Diffusion 1.5 and XL, DreamLite, and UNet2D without text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from genkit.families.base import Family, SiteRule, Streams, shape
from genkit.families.codec import scaled
from genkit.families.facts import Objective, PipelineFacts, TextRule
from genkit.families.grids import unet_levels
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import ReadConfig, SizeRule


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, height, width = shape(args, "sample", 4, "UNet")
    return unet_levels(len(model.config.block_out_channels), height, width)


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(8, 1)


def _states(pipeline: Any, prompts: list[str], slots: int) -> Any:
    # CLIP has its own number of slots.
    return pipeline.encode_prompt(prompts, pipeline._execution_device, 1, do_classifier_free_guidance=False)[0]


FAMILY = Family(
    name="UNet2DCondition",
    classes=("UNet2DConditionModel",),
    pipelines=("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionImg2ImgPipeline"),
    rules=(
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
    ),
    streams=_streams,
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
    "call and announce none. An image prompt adapter attends in further calls with keys named 'image'.",
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
    facts=PipelineFacts(pattern="DreamLite.*", sizes=lambda config: SizeRule(8, 1)),
    notes="Layers are numbered in the order of execution: down, middle, up. Only the inner levels have self-attention. "
    "Both branches are computed in one call.",
)

FAMILIES = (FAMILY, UNET_2D, DREAM_LITE)
