"""Denoisers in fewer bits: ``--quantize``. What it needs is told before weights are read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from genkit.pipelines.model import Model

NF4, INT8, FP8, GGUF = "nf4", "int8", "fp8", "gguf"
#: By Diffusers itself: weights are stored in 8 bits and read back layer by layer.
CASTING = "casting"
_BITSANDBYTES, _TORCHAO, _QUANTO = "bitsandbytes", "torchao", "quanto"
#: Kind -> what does it, the first that runs here where nobody names one.
WAYS = {
    NF4: (_BITSANDBYTES,),
    INT8: (_BITSANDBYTES, _TORCHAO, _QUANTO),
    FP8: (CASTING, _TORCHAO, _QUANTO),
}
#: What ``--quantize`` takes.
QUANTISED = (*WAYS, *(f"{kind}:{way}" for kind, ways in WAYS.items() for way in ways if len(ways) > 1), GGUF)
#: Name -> module and package.
_PACKAGES = {
    _BITSANDBYTES: ("bitsandbytes", "bitsandbytes"),
    _TORCHAO: ("torchao", "torchao"),
    _QUANTO: ("optimum.quanto", "optimum-quanto"),
}


def choose(text: str, device: torch.device, loras: bool, files: tuple[str, ...]) -> tuple[str, str | None]:
    """What a ``--quantize`` comes to on a device, and what to tell of it.

    Args:
        text: one of :data:`QUANTISED`.
        device: of the run.
        loras: whether it has LoRAs.
        files: denoisers that are files of their own.

    Returns:
        ``kind`` or ``kind:way`` for the record, and a line where the way was chosen here.

    Raises:
        UnsupportedError: no such device or package. UsageError: with a LoRA whose layers would be cut too, or a GGUF
            without its file.
    """
    kind, _, named = text.partition(":")
    if kind == GGUF:
        if not any(name.endswith(".gguf") for name in files):
            raise UsageError("--quantize gguf: GGUF is a form of files; give the denoiser's, --denoiser FILE.gguf")
        return text, None
    ways = (named,) if named else WAYS[kind]
    lacking = {way: _lacking(way, device) for way in ways}
    here = next((way for way, reason in lacking.items() if reason is None), None)
    if here is None:
        reasons = "; ".join(f"{way} {reason}" for way, reason in lacking.items())
        raise UnsupportedError(f"--quantize {text}: {reasons}; --quantize fp8 runs everywhere, without a package")
    if loras and here == CASTING:
        raise UsageError(
            "--quantize fp8 with --lora: layers of a LoRA take the type of the weights beside them, and 8 bits are "
            "too few for them; take int8, nf4 or fp8:torchao, or leave one of both out"
        )
    if kind == FP8 and here == CASTING:
        return kind, None
    if len(WAYS[kind]) == 1:
        return kind, None
    return f"{kind}:{here}", None if named else f"--quantize {kind} is done by {here}; {kind}:NAME takes another one"


def _lacking(way: str, device: torch.device) -> str | None:
    """What a way needs and this machine has not; None where it runs."""
    if way == CASTING:
        return None
    if way == _BITSANDBYTES and device.type != "cuda":
        return f"runs on an NVIDIA GPU, and the device is {device}"
    module, package = _PACKAGES[way]
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        found = False
    return None if found else f"needs the package {package}, which is missing (install {package})"


def folders_only(text: str | None) -> bool:
    """Whether weights are read that way from folders alone, not from single files."""
    return text not in (None, FP8, f"{FP8}:{CASTING}", GGUF)


def reading(text: str | None, model: Model, dtype: torch.dtype) -> Any:
    """How Diffusers reads the denoisers in fewer bits; None where they are read as they are.

    Args:
        text: from :func:`choose`.
        model: whose denoisers.
        dtype: of the products.
    """
    if text is None or not folders_only(text):
        return None
    from diffusers import PipelineQuantizationConfig

    return PipelineQuantizationConfig(quant_mapping={part: _config(text, dtype) for part in model.outline.components})


def _config(text: str, dtype: torch.dtype) -> Any:
    """Diffusers' configuration of a quantiser."""
    import torch
    from diffusers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

    kind, _, way = text.partition(":")
    if way == _TORCHAO:
        from torchao import quantization

        name = "Int8WeightOnlyConfig" if kind == INT8 else "Float8WeightOnlyConfig"
        return TorchAoConfig(getattr(quantization, name)())
    if way == _QUANTO:
        return QuantoConfig(weights_dtype="int8" if kind == INT8 else "float8")
    if kind == INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if dtype != torch.float32 else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def finish(pipeline: Any, text: str | None, model: Model, dtype: torch.dtype) -> None:
    """What is left to do with loaded denoisers: store weights in 8 bits (E4M3) by Diffusers' layerwise casting, whose
    layers compute in ``dtype`` while norms and embeddings stay as they are; and look whether a quantiser did its work.

    Raises:
        UnsupportedError: a quantiser that passed over all layers, whose sizes it cannot divide.
    """
    if text is None or text == GGUF:
        return
    import torch

    for part in model.outline.components:
        network = getattr(pipeline, part)
        if not folders_only(text):
            network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
        elif not quantised(network):
            raise UnsupportedError(
                f"--quantize {text} quantised no layer of {type(network).__name__}, whose sizes do not suit it; leave "
                "it out, or take fp8"
            )


def quantised(network: nn.Module) -> bool:
    """Whether a quantiser changed any tensor of a network."""
    from torch import nn

    return any(type(value) is not nn.Parameter or not value.is_floating_point() for value in network.parameters())
