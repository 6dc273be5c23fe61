"""Wan: video self-attention, text cross-attention, image keys before text keys in image-to-video."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any

from genkit.families.base import MAIN, BlockStack, Family, SiteRule, Streams, grid_with, shape
from genkit.families.codec import standardised
from genkit.families.facts import FLOW, Objective, PipelineFacts, Streaming, TextRule
from genkit.families.inputs import BEGINNING, Inputs, Other
from genkit.families.sizes import ReadConfig, Size, SizeRule

CODEC = standardised("BCTHW")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, frames, height, width = shape(args, "hidden_states", 5, "Wan")
    t, h, w = model.config.patch_size
    return {MAIN: grid_with((frames // t, height // h, width // w))}


def _patch(config: ReadConfig) -> Size:
    return tuple(config("transformer").get("patch_size", (1, 2, 2)))


def _sizes(config: ReadConfig) -> SizeRule:
    vae, patch = config("vae"), _patch(config)
    spatial = vae.get("scale_factor_spatial", 8)
    return SizeRule(lcm(16, spatial * patch[1], spatial * patch[2]), vae.get("scale_factor_temporal", 4))


def _token(config: ReadConfig) -> Size:
    vae, patch = config("vae"), _patch(config)
    spatial = vae.get("scale_factor_spatial", 8)
    return vae.get("scale_factor_temporal", 4) * patch[0], spatial * patch[1], spatial * patch[2]


def _states(pipeline: Any, prompts: list[str], slots: int) -> Any:
    return pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=slots)[0]


def _levels(model: Any, levels: Any, tokens: int, fps: float) -> dict[str, Any]:
    """Every token has a timestep of its own; one for all where they are the same, which is less to compute."""
    same = bool((levels == levels[:, :1]).all())
    return {"timestep": levels[:, 0] if same else levels.repeat_interleave(tokens, 1)}


def _own_timesteps(config: ReadConfig) -> bool:
    """Whether every token has a timestep of its own, so that given frames can be told from noise (5B of Wan 2.2)."""
    return bool(config("model_index").get("expand_timesteps"))


def _no_last(config: ReadConfig) -> str | None:
    """Why a model from pictures takes no last one: 5B's pipeline passes over it, 2.1 has weights of its own for it."""
    if _own_timesteps(config):
        return "the pipeline passes over it where every token has a timestep of its own (Wan 2.2 5B)"
    model = config("transformer")
    if model.get("image_dim") is not None and model.get("pos_embed_seq_len") is None:
        return "these weights see one picture only; the first-last-frame model of Wan 2.1 sees two"
    return None


def _plain_latents(config: ReadConfig) -> bool:
    """The pipeline from clips counts the latents of 2.1's autoencoder, not of the one with patches (5B)."""
    return not config("vae").get("patch_size") and not _own_timesteps(config)


FAMILY = Family(
    name="Wan",
    classes=(
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "WanAnimateTransformer3DModel",
        "ChronoEditTransformer3DModel",
    ),
    pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"),
    rules=(
        SiteRule(r"(?:vace_)?blocks\.\d+\.attn1", "self"),
        SiteRule(r"(?:vace_)?blocks\.\d+\.attn2", "cross", keys=("text",), added_keys=("image", "text")),
    ),
    streams=_streams,
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks", "vace_blocks"),
    grid="hidden_states (B, C, F, H, W) divided by patch_size",
    text="apart",
    video=True,
    branches=("cond", "uncond"),
    time_positions="shape",
    stack=BlockStack(
        ("blocks",),
        text="",
        rotary=("rotary_emb",),
        per_token=("temb",),
        output=None,
        classes=("WanTransformer3DModel",),
    ),
    facts=PipelineFacts(
        pattern="Wan(?!Animate2).*",
        fps="16",
        sizes=_sizes,
        token=_token,
        codec=CODEC,
        text=TextRule(("encoder_hidden_states",), 512, _states),
        objective=Objective(FLOW, "thousand"),
        lora_targets=r"(?:vace_)?blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
        architecture="wan",
        inputs={
            # Its call begins with the last frames of the clip and makes what follows.
            "WanGivenFramesPipeline": Inputs(takes={"source_video": (BEGINNING,)}),
            "WanImageToVideoPipeline": Inputs(unless={"last_image": _no_last}),
            "WanVACEPipeline": Inputs(
                takes={
                    "image": ("reference_images",),
                    "last_image": ("video",),
                    "keyframe": ("video",),
                    "control": ("video",),
                },
                several=True,
                looks=True,
                timeline=True,
            ),
            "WanAnimatePipeline": Inputs(
                takes={"control": ("pose_video", "face_video"), "source_video": ("background_video",)},
                needs=("image", "control"),
            ),
        },
        others={
            "WanPipeline": (
                Other("WanImageToVideoPipeline", _own_timesteps),
                Other("WanVideoToVideoPipeline", _plain_latents),
            ),
        },
        streaming=Streaming(81, _levels, one_picture=_own_timesteps),
        tasks={
            "given_frames": "WanPipeline",
            "stream": "WanPipeline",
            "storyboard": "WanPipeline",
            "second_pass": "Wan(ImageToVideo)?Pipeline",
            "reference_pictures": "Wan.*",
            "train_patch": "WanPipeline",
            "train_reference": "WanPipeline",
            "train_agent": "WanPipeline",
            "boxes": "WanPipeline",
        },
    ),
    notes="Image-to-video attends the image tokens in a first cross-attention call and the text in a second. In VACE "
    "the layers of the control branch are numbered after the main ones.",
)
