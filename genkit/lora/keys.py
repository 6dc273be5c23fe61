"""Names of tensors in LoRA files: which half of which module, and what is no LoRA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from genkit.errors import ArtifactError, counted, escaped, shortened
from genkit.reading.files import place

#: Names that Diffusers translates itself: of ComfyUI and the models' authors, of Kohya and musubi, of OneTrainer.
TRANSLATED = (
    "diffusion_model.", "text_encoders.", "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_",
)  # fmt: skip
#: Parts of names that say what kind of adapter a file holds, when it is another one than LoRA.
_OTHERS = {
    ".hada_": "LoHa", ".oft_": "OFT", ".boft_": "BOFT", ".dora_scale": "DoRA in Kohya's form",
    ".on_input": "IA3", ".diff": "full differences", ".glora": "GLoRA", ".vera_": "VeRA",
}  # fmt: skip
KEY = re.compile(
    r"(?P<module>.+?)\.(?P<half>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_linear_layer\.down"
    r"|lora_linear_layer\.up)(\.(?!weight|bias)\w+)?\.(?P<kind>weight|bias)"
)
#: Tensors of LoKr: a module's two Kronecker factors, whole or as halves.
LOKR = re.compile(r"(?P<module>.+)\.lokr_(?P<factor>w[12](?:_[ab])?|t[12])(?:\.weight)?")
_OLD = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
#: The halves that stand first: A.
DOWN = ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down")


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse a file without LoRA, with another kind of adapter, or with half of a pair."""
    for mark, kind in _OTHERS.items():
        first = next((name for name in names if mark in name and ".diff_b" not in name), None)
        if first is not None:
            raise ArtifactError(
                f"{place(path)} holds {kind} ({short(first)}), which genkit does not load; convert it to LoRA"
            )
    lokr = _check_lokr(path, names)
    halves: dict[str, set[str]] = {}
    for name in names:
        found = KEY.fullmatch(name)
        if found and found["kind"] == "weight":
            halves.setdefault(found["module"], set()).add("A" if found["half"] in DOWN else "B")
    if not halves and not lokr and not any("_lora." in name for name in names):
        raise ArtifactError(f"{place(path)} holds no LoRA weights (no tensor name contains 'lora')")
    for half, other in (("A", "B"), ("B", "A")):
        alone = [module for module, found in halves.items() if found == {half}]
        if alone:
            raise ArtifactError(
                f"{place(path)} has lora_{half} and no lora_{other} for {len(alone)} of "
                f"{counted(len(halves), 'module')}, "
                f"the first is {short(alone[0])}; the file is incomplete"
            )


def _check_lokr(path: Path, names: Sequence[str]) -> bool:
    """Whether a file holds LoKr; refused where no LoRA is equal to it, or where a factor is missing."""
    factors: dict[str, set[str]] = {}
    for name in names:
        found = LOKR.fullmatch(name)
        if found:
            factors.setdefault(found["module"], set()).add(found["factor"])
        elif ".lokr_" in name:
            raise ArtifactError(f"{place(path)} holds LoKr of an unknown form ({short(name)})")
    for module, there in factors.items():
        if there & {"t1", "t2"}:
            raise ArtifactError(f"{place(path)} holds LoKr of convolutions in three factors ({short(module)})")
        if "w2" in there:
            raise ArtifactError(
                f"{place(path)} holds LoKr whose second factor is a whole matrix ({short(module)}): it has full "
                "rank, so no LoRA is equal to it; merge it into the model with the program that made it, and take the "
                "difference with genkit lora extract"
            )
        if not {"w2_a", "w2_b"} <= there or not ("w1" in there or {"w1_a", "w1_b"} <= there):
            raise ArtifactError(f"{place(path)} holds LoKr with a factor missing ({short(module)}); it is incomplete")
    return bool(factors)


def simplified(key: str) -> str:
    """A name without what peft adds when it saves by itself."""
    key = key.removeprefix("base_model.model.")
    return re.sub(r"\.(lora_[AB])\.(?!weight$|bias$)\w+\.(weight|bias)$", r".\1.\2", key)


def is_peft(key: str) -> bool:
    """Whether a name is one of peft's."""
    return ".lora_A." in key or ".lora_B." in key or key.endswith("lora_magnitude_vector")


def peft_name(part: str, key: str) -> str:
    """A name in peft's form; Diffusers' older names of attention layers are translated."""
    found = _OLD.fullmatch(key)
    if found is None:
        return key
    text = part.startswith("text_encoder")
    layer = {"out": "out_proj" if text else "to_out.0"}.get(found[2], f"{found[2]}_proj" if text else f"to_{found[2]}")
    return f"{found[1]}.{layer}.lora_{'A' if found[3] == 'down' else 'B'}.weight"


def short(name: str) -> str:
    """A name from a file, for messages."""
    return shortened(escaped(name), 120)
