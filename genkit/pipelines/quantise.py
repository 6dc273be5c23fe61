"""Denoisers in fewer bits: ``--quantize``. What it needs is told before weights are read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch

    from genkit.pipelines.model import Model

NF4, INT8, FP8 = "nf4", "int8", "fp8"
#: Kinds that Diffusers reads from folders alone, not from single files.
FOLDERS_ONLY = (NF4, INT8)
_PACKAGE = "bitsandbytes"


def check_quantise(kind: str, device: torch.device, loras: bool) -> None:
    """Refuse what this machine or the run cannot have.

    Raises:
        UnsupportedError: no such device or package. UsageError: with a LoRA whose layers would be cut too.
    """
    if kind == FP8:
        if loras:
            raise UsageError(
                "--quantize fp8 with --lora: layers of a LoRA take the type of the weights beside them, and 8 bits are "
                "too few for them; take nf4 or int8, or leave one of both out"
            )
        return
    if device.type != "cuda":
        raise UnsupportedError(
            f"--quantize {kind} runs on an NVIDIA GPU ({_PACKAGE}), and the device is {device}; --quantize fp8 runs "
            "everywhere"
        )
    if find_spec(_PACKAGE) is None:
        raise UnsupportedError(f"--quantize {kind} needs the package {_PACKAGE}, which is missing: install {_PACKAGE}")


def reading(kind: str | None, model: Model, dtype: torch.dtype) -> Any:
    """How Diffusers reads the denoisers in fewer bits; None where they are read as they are."""
    if kind not in FOLDERS_ONLY:
        return None
    import torch
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig

    settings: dict[str, Any] = {"load_in_8bit": True}
    if kind == NF4:
        compute = dtype if dtype != torch.float32 else torch.bfloat16
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
    return PipelineQuantizationConfig(
        quant_mapping={part: BitsAndBytesConfig(**settings) for part in model.outline.components}
    )


def store_in_eight(pipeline: Any, kind: str | None, model: Model, dtype: torch.dtype) -> None:
    """Keep the weights of loaded denoisers in 8 bits (E4M3) by Diffusers' layerwise casting: each layer computes in
    ``dtype``, norms and embeddings stay as they are."""
    if kind != FP8:
        return
    import torch

    for part in model.outline.components:
        getattr(pipeline, part).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
