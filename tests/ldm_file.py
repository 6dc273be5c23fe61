"""Checkpoints in one file, as the authors of Stable Diffusion and the programs around it keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Diffusers' names within a residual block of the UNet -> the original's.
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
#: Within an attention of the autoencoder.
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1":
    "time_embed.0", "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def unet_names(unet: Any) -> dict[str, str]:
    """Diffusers' beginnings of names of a UNet -> the original's."""
    names, count, last = dict(_ENDS), 1, len(unet.down_blocks) - 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{count}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{count}.1"
            count += 1
        if i < last:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
            count += 1
    names |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    names["mid_block.resnets.1"], count = "middle_block.2", 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{count}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{count}.1"
            count += 1
        place = 2 if getattr(block, "attentions", None) else 1
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{count - 1}.{place}.conv"
    return names


def vae_names(vae: Any) -> dict[str, str]:
    """The same of an autoencoder."""
    names = {}
    for side, way, blocks in (("encoder", "down", vae.encoder.down_blocks), ("decoder", "up", vae.decoder.up_blocks)):
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        names[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
        for j in range(2):
            names[f"{side}.mid_block.resnets.{j}"] = f"{side}.mid.block_{j + 1}"
        for i, block in enumerate(blocks):
            level = i if way == "down" else len(blocks) - 1 - i
            for j in range(len(block.resnets)):
                names[f"{side}.{way}_blocks.{i}.resnets.{j}"] = f"{side}.{way}.{level}.block.{j}"
            names[f"{side}.{way}_blocks.{i}.{way}samplers.0"] = f"{side}.{way}.{level}.{way}sample"
    return names


def renamed(name: str, names: dict[str, str]) -> str:
    """One name with its beginning changed."""
    start = max((each for each in names if name.startswith(f"{each}.")), key=len, default="")
    return names[start] + name[len(start) :] if start else name


def sd_tensors(pipeline: Any) -> dict[str, Any]:
    """The weights of a StableDiffusionPipeline by the original's names."""
    found = {}
    names = unet_names(pipeline.unet)
    for name, value in pipeline.unet.state_dict().items():
        new = renamed(name, names)
        if ".resnets." in name:
            for ours, theirs in _RESNET.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
        found[f"model.diffusion_model.{new}"] = value
    names = vae_names(pipeline.vae)
    for name, value in pipeline.vae.state_dict().items():
        new = renamed(name, names).replace("conv_shortcut", "nin_shortcut")
        if ".attentions." in name:
            for ours, theirs in _VAE_ATTENTION.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[f"first_stage_model.{new}"] = value
    for name, value in pipeline.text_encoder.state_dict().items():
        inner = name if name.startswith("text_model.") else f"text_model.{name}"
        found[f"cond_stage_model.transformer.{inner}"] = value
    return found


def write_sd_file(folder: Path, path: Path, without: str = "-", **extra: Any) -> Path:
    """The weights of a Stable Diffusion folder in one file.

    Args:
        folder: of a StableDiffusionPipeline.
        path: of the file.
        without: beginning of names that are left out.
        extra: further tensors.
    """
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import save_file

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    tensors = {name: value for name, value in sd_tensors(pipeline).items() if not name.startswith(without)}
    save_file({name: value.contiguous() for name, value in (tensors | extra).items()}, path)
    return path


def open_clip_names(encoder: Any, prefix: str) -> dict[str, Any]:
    """The weights of a text encoder by OpenCLIP's names."""
    import torch

    found, joined = {}, {}
    for name, value in encoder.state_dict().items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T
        elif name.startswith("embeddings.position"):
            found[f"{prefix}positional_embedding"] = value
        elif name.startswith("embeddings.token"):
            found[f"{prefix}token_embedding.weight"] = value
        elif name.startswith("final_layer_norm"):
            found[f"{prefix}{name.replace('final_layer_norm', 'ln_final')}"] = value
        elif "_proj." in name and ".out_proj" not in name:
            block, _, rest = name.removeprefix("encoder.layers.").partition(".")
            joined.setdefault((block, rest.rpartition(".")[2]), {})[rest.split(".")[1]] = value
        else:
            for ours, theirs in (("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"),
                                 ("layer_norm2", "ln_2"), (".fc1", ".c_fc"), (".fc2", ".c_proj"),
                                 ("self_attn", "attn")):  # fmt: skip
                name = name.replace(ours, theirs)
            found[f"{prefix}{name}"] = value
    for (block, kind), three in joined.items():
        value = torch.cat([three[f"{each}_proj"] for each in "qkv"])
        found[f"{prefix}transformer.resblocks.{block}.attn.in_proj_{kind}"] = value
    return found
