"""The frozen denoiser in fewer bits, through Diffusers' own quantisers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from genkit.errors import UnsupportedError, UsageError, explain, shown
from genkit.pipelines.quantise import quantised
from genkit.schema import number

#: Name in settings -> package that it needs.
BACKENDS = {
    "bitsandbytes_8bit": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}
_MODULES = {"optimum-quanto": "optimum.quanto"}
#: Name of the argument that says which of torchao's configurations is meant.
_CONFIG = "config"
_USUAL = "Int8WeightOnlyConfig"


def check_backend(name: str, device: torch.device) -> None:
    """Refuse a quantiser that is not here, or that needs a GPU; UnsupportedError says how to install it."""
    package = BACKENDS[name]
    try:
        there = find_spec(_MODULES.get(package, package)) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        raise UnsupportedError(f"--quantization {name} needs the package {package}; pip install {package}")
    if package == "bitsandbytes" and device.type == "cpu":
        raise UnsupportedError(f"--quantization {name} needs a GPU; on the CPU: torchao or quanto")


def quantisation(component: str, name: str, arguments: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Diffusers' configuration of a pipeline whose denoiser is quantised when it is read.

    Args:
        component: the denoiser.
        name: one of :data:`BACKENDS`.
        arguments: of the quantiser's configuration; texts are read as numbers and truth values where they are some.
        dtype: of the products, for 4 bits.

    Raises:
        UsageError: an argument that the quantiser does not have.
    """
    from diffusers import PipelineQuantizationConfig
    from diffusers.quantizers import quantization_config as kinds

    given = {key: _value(value) for key, value in arguments.items()}
    try:
        if name == "bitsandbytes_8bit":
            config = kinds.BitsAndBytesConfig(load_in_8bit=True, **given)
        elif name == "bitsandbytes_4bit":
            usual = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
            config = kinds.BitsAndBytesConfig(load_in_4bit=True, **{**usual, **given})
        elif name == "quanto":
            config = kinds.QuantoConfig(**given)
        else:
            config = kinds.TorchAoConfig(_torchao(given))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--quantization-args: {name} refuses them: {shown(str(error))}") from error
    return PipelineQuantizationConfig(quant_mapping={component: config})


def check_quantised(name: str, model: nn.Module) -> None:
    """Refuse a denoiser that a quantiser left as it was: it passes over layers of sizes that it cannot divide."""
    if not quantised(model):
        raise UnsupportedError(
            f"--quantization {name} quantised no layer of {type(model).__name__}, whose sizes do not suit it; choose "
            "other --quantization-args, or leave it out"
        )


def _torchao(given: dict[str, Any]) -> Any:
    """torchao's configuration of a name."""
    import torchao.quantization as found

    names = sorted(name for name in dir(found) if name.endswith("WeightOnlyConfig"))
    name = given.pop(_CONFIG, _USUAL)
    if name not in names:
        raise UsageError(explain(f"--quantization-args {_CONFIG}", name, names))
    return getattr(found, name)(**given)


def _value(given: Any) -> Any:
    """A text as the number or truth value that it writes; a word as it is."""
    if not isinstance(given, str):
        return given
    if given.lower() in ("true", "false"):
        return given.lower() == "true"
    for kind in (int, float):
        try:
            return number(given, kind, "")
        except UsageError:
            continue
    return given
