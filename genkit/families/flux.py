"""Flux and its descendants: joint attention, text first, reference images (Kontext, edit) after the image."""

from __future__ import annotations

from dataclasses import replace

from genkit.families.base import BlockStack, Family, Rotary, SiteRule
from genkit.families.codec import scaled
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.grids import text_image_references
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import ReadConfig, Size, SizeRule, packed_image, packed_image_token

FLUX = Family(
    name="Flux",
    classes=("FluxTransformer2DModel",),
    pipelines=("FluxPipeline", "FluxKontextPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    rules=(SiteRule(r"(?:single_)?transformer_blocks\.\d+\.attn", "joint"),),
    streams=text_image_references("Flux"),
    reads=("hidden_states", "encoder_hidden_states", "img_ids"),
    sample="hidden_states",
    order=("transformer_blocks", "single_transformer_blocks"),
    grid="img_ids with first coordinate 0; further tokens are the segment 'reference'",
    text="first",
    video=False,
    branches=("cond", "uncond"),
    rotary=Rotary(),
    time_positions="img_ids (another first coordinate)",
    stack=BlockStack(("transformer_blocks", "single_transformer_blocks"), output=1),
    facts=PipelineFacts(
        pattern="Flux(?![23]).*",
        needs_input=r"Flux.*(?:Img2Img|Inpaint|Fill|Kontext|Control|Redux).*",
        inputs={
            "FluxKontextPipeline": Inputs(looks=True, follows=True),
            "FluxPriorReduxPipeline": Inputs(looks=True),
        },
        others={
            "FluxPipeline": (
                Other("FluxImg2ImgPipeline"),
                Other("FluxInpaintPipeline"),
                Other("FluxControlNetPipeline", controlnet=True),
                Other("FluxControlNetImg2ImgPipeline", controlnet=True),
                Other("FluxControlNetInpaintPipeline", controlnet=True),
            )
        },
        priors=("FluxPriorReduxPipeline",),
        sizes=packed_image,
        token=packed_image_token,
        codec=scaled("packed"),
        text=TextRule(("encoder_hidden_states", "pooled_projections", "txt_ids"), 512),
        objective=Objective(FLOW, "sigma"),
        lora_targets=r"(?:single_)?transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0)",
        architecture="flux-1-dev",
    ),
    notes="Single blocks are numbered after double blocks. Image prompt adapters' extra attention stays as it is.",
)

CHROMA = replace(
    FLUX,
    name="Chroma",
    stack=None,
    classes=("ChromaTransformer2DModel",),
    pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    streams=text_image_references("Chroma"),
    branches=(),
    facts=PipelineFacts(
        pattern="Chroma.*",
        sizes=packed_image,
        token=packed_image_token,
        others={"ChromaPipeline": (Other("ChromaImg2ImgPipeline"), Other("ChromaInpaintPipeline"))},
    ),
    notes="Single blocks are numbered after double blocks. The pipelines call the model twice per step and announce "
    "nothing. They hand in a mask of text as numbers 0 and 1, which the model adds to the scores.",
)

BRIA = replace(
    FLUX,
    name="Bria",
    stack=None,
    classes=("BriaTransformer2DModel",),
    pipelines=("BriaPipeline",),
    streams=text_image_references("Bria"),
    branches=(),
    facts=PipelineFacts(pattern="BriaPipeline", sizes=packed_image, token=packed_image_token),
    notes="Single blocks are numbered after double blocks. Both branches are computed in one call. No attention "
    "processors can be set, so use genkit.patch.",
)


def _fibo_sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(16, 1)


def _fibo_token(config: ReadConfig) -> Size:
    return 1, 16, 16


BRIA_FIBO = replace(
    BRIA,
    name="Bria FIBO",
    stack=None,
    classes=("BriaFiboTransformer2DModel",),
    pipelines=("BriaFiboPipeline", "BriaFiboEditPipeline"),
    streams=text_image_references("Bria FIBO"),
    facts=PipelineFacts(
        pattern="BriaFibo(?:Edit)?Pipeline", sizes=_fibo_sizes, token=_fibo_token, needs_input="BriaFiboEditPipeline"
    ),
    notes="Single blocks are numbered after double blocks. Padding of the text is hidden by a key mask. Both branches "
    "are computed in one call. No attention processors can be set, so use genkit.patch.",
)

OVIS = replace(
    FLUX,
    name="Ovis-Image",
    stack=None,
    classes=("OvisImageTransformer2DModel",),
    pipelines=("OvisImagePipeline",),
    streams=text_image_references("Ovis-Image"),
    facts=PipelineFacts(pattern="OvisImage.*", sizes=packed_image, token=packed_image_token),
    notes="Single blocks are numbered after double blocks. No attention processors can be set, so use genkit.patch.",
)

LONGCAT = replace(
    FLUX,
    name="LongCat-Image",
    stack=None,
    classes=("LongCatImageTransformer2DModel",),
    pipelines=("LongCatImagePipeline", "LongCatImageEditPipeline"),
    streams=text_image_references("LongCat-Image", number=1),
    grid="img_ids with first coordinate 1; further tokens are the segment 'reference'",
    facts=PipelineFacts(
        pattern="LongCatImage.*",
        sizes=packed_image,
        token=packed_image_token,
        needs_input="LongCatImageEditPipeline",
    ),
    notes="Single blocks are numbered after double blocks.",
)

FAMILIES = (FLUX, CHROMA, BRIA, BRIA_FIBO, OVIS, LONGCAT)
