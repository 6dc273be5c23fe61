"""genkit: better attention for Hugging Face Diffusers pipelines.

Names are loaded when they are first used, so that ``import genkit`` stays light.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    "AttenSTPipeline": "genkit.editing.attenst",
    "Check": "genkit.patching",
    "DiTCtrlPipeline": "genkit.editing.ditctrl",
    "FlowEditPipeline": "genkit.editing.flow_edit",
    "HDPainterPipeline": "genkit.editing.hd_painter",
    "IRDiffusionPipeline": "genkit.editing.ir_diffusion",
    "ImageToImagePipeline": "genkit.editing.image_to_image",
    "InfEditPipeline": "genkit.editing.infedit",
    "Look": "genkit.evaluation.inspection",
    "Part": "genkit.patching",
    "PatchHandle": "genkit.patching",
    "PromptToPromptPipeline": "genkit.editing.prompt_to_prompt",
    "Schedule": "genkit.patching",
    "ShotChainPipeline": "genkit.editing.shot_chain",
    "TokenLayout": "genkit.layout",
    "ViMAEditPipeline": "genkit.editing.vimaedit",
    "WanGivenFramesPipeline": "genkit.pipelines.tasks.inputs.given_frames",
    "WordWeights": "genkit.control.words",
    "attn_processors": "genkit.patching",
    "compare": "genkit.evaluation.comparison.api",
    "load": "genkit.pipelines.load",
    "load_lora": "genkit.lora.load",
    "methods": "genkit.attention.registry",
    "patch": "genkit.patching",
    "patches": "genkit.patching",
    "read_instruction": "genkit.pipelines.instruction.door",
    "recipe": "genkit.pipelines.recipes",
    "register_family": "genkit.families.lookup",
    "rotary_base": "genkit.patching",
    "unpatch": "genkit.patching",
    "why_not": "genkit.patching",
}
_ROOMS = (
    "attention",
    "cli",
    "control",
    "demo",
    "editing",
    "evaluation",
    "families",  # also the public function: the package can be called
    "kernels",
    "lora",
    "media",
    "models",
    "patching",
    "pipelines",
    "plugins",
    "streaming",
    "training",
    "world",
)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"genkit.{name}")
    else:
        value = _method(name)
    globals()[name] = value
    return value


def _method(name: str) -> Any:
    """A method class by its class name: ``genkit.Radial`` is registered as ``radial``."""
    if name[:1].isupper():
        from genkit.attention import registry

        registered = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        if registered in registry.names() and registry.method_class(registered).__name__ == name:
            return registry.method_class(registered)
    raise AttributeError(f"module 'genkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    from genkit.attention import registry

    methods = {"".join(word.capitalize() for word in name.split("_")) for name in registry.names()}
    return sorted({"__version__", *_EXPORTS, *_ROOMS, *methods})
