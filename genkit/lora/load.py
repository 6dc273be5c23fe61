"""LoRA files: what is in them, which modules of a pipeline they fit, and loading them whole or, when asked, in part.

Diffusers drops what does not fit without an error. Here every module of a file is matched with the pipeline first: with
its outline before weights are read, and with the pipeline itself when the file is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, escaped, explain, shortened
from genkit.models.check import check_safetensors
from genkit.reading import parse_json, read_json
from genkit.reading.files import place
from genkit.reading.strength import STRENGTH, path_and_strength
from genkit.schema import open_keys, read

if TYPE_CHECKING:
    import torch

EXPERTS = ("transformer", "transformer_2")
NAMED = "pytorch_lora_weights.safetensors"
_PART = re.compile(r"(.+):([A-Za-z_]\w*)")
#: Names that Diffusers translates itself: of ComfyUI and the models' authors, of Kohya and musubi, of OneTrainer.
_TRANSLATED = ("diffusion_model.", "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_")
#: Parts of names that say what kind of adapter a file holds, when it is another one than LoRA.
_OTHERS = {
    ".lokr_": "LoKr", ".hada_": "LoHa", ".oft_": "OFT", ".boft_": "BOFT", ".dora_scale": "DoRA in Kohya's form",
    ".on_input": "IA3", ".diff": "full differences", ".glora": "GLoRA", ".vera_": "VeRA",
}  # fmt: skip
_KEY = re.compile(
    r"(?P<module>.+?)\.(?P<half>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_linear_layer\.down"
    r"|lora_linear_layer\.up)(\.(?!weight|bias)\w+)?\.(?P<kind>weight|bias)"
)
_OLD = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_HALVES = {"A": ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down")}


@dataclass(frozen=True)
class Lora:
    """A LoRA as a user names it: ``file[@strength][:part]``.

    Args:
        path: the safetensors file.
        strength: factor of its change.
        part: the part of the pipeline that it goes to; None for all that it is made for.
    """

    path: Path
    strength: float = 1.0
    part: str | None = None

    def __str__(self) -> str:
        return f"{self.path.resolve()}{STRENGTH}{self.strength:g}{f':{self.part}' if self.part else ''}"


@dataclass
class _Pair:
    """The change of one module: B A, times ``scale``."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    alpha: float | None = None
    magnitude: torch.Tensor | None = None


@dataclass
class _File:
    """What a file holds: pairs by (part of the pipeline, module), and whether Diffusers reads it the same way."""

    pairs: dict[tuple[str, str], _Pair] = field(default_factory=dict)
    plain: bool = True


def parse_lora(text: str) -> Lora:
    """``"folder/or/file[@strength][:part]"``, read and checked as far as it can be without a model.

    Raises:
        UsageError: the strength is no number.
        ArtifactError: nothing there, not a whole safetensors file, or no LoRA in it.
    """
    found = _PART.fullmatch(text)
    part = found.group(2) if found and not Path(text).exists() else None
    path, strength = path_and_strength(found.group(1) if found and part else text, "--lora")
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ArtifactError(f"LoRA folder {place(path)} has no .safetensors file")
        named = [file for file in files if file.name == NAMED]
        if not named and len(files) > 1:
            raise ArtifactError(f"LoRA folder {place(path)} has {len(files)} .safetensors files; name one of them")
        path = (named or files)[0]
    if not path.exists():
        raise ArtifactError(f"LoRA {place(path)} does not exist")
    _check_names(path, [name for name in check_safetensors(path) if name != "__metadata__"])
    return Lora(path, strength, part)


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse a file without LoRA, with another kind of adapter, or with half of a pair."""
    for mark, kind in _OTHERS.items():
        first = next((name for name in names if mark in name and ".diff_b" not in name), None)
        if first is not None:
            raise ArtifactError(
                f"{place(path)} holds {kind} ({_short(first)}), which genkit does not load; convert it to LoRA"
            )
    halves: dict[str, set[str]] = {}
    for name in names:
        found = _KEY.fullmatch(name)
        if found and found["kind"] == "weight":
            halves.setdefault(found["module"], set()).add("A" if found["half"] in _HALVES["A"] else "B")
    if not halves and not any("_lora." in name for name in names):
        raise ArtifactError(f"{place(path)} holds no LoRA weights (no tensor name contains 'lora')")
    for half, other in (("A", "B"), ("B", "A")):
        alone = [module for module, found in halves.items() if found == {half}]
        if alone:
            raise ArtifactError(
                f"{place(path)} has lora_{half} and no lora_{other} for {len(alone)} of {len(halves)} modules, "
                f"the first is {_short(alone[0])}; the file is incomplete"
            )


def check_lora(pipeline_class: type) -> None:
    """Refuse a pipeline class that takes no LoRA, and a machine without peft; UnsupportedError."""
    if not hasattr(pipeline_class, "load_lora_weights"):
        raise UnsupportedError(f"{pipeline_class.__name__} takes no LoRA")
    if find_spec("peft") is None:
        raise UnsupportedError("--lora needs the package peft; pip install peft")


def apply_loras(pipeline: Any, loras: Sequence[Lora | str], partial: bool = False) -> list[str]:
    """Load LoRA files into a pipeline under the names ``lora0``, ``lora1``, ... with their strengths.

    Args:
        pipeline: a loaded Diffusers pipeline.
        loras: in order.
        partial: load what fits of a file that fits in part, instead of refusing it.

    Returns:
        What the user should know, one line each: files that were used in part, or for both experts.

    Raises:
        UnsupportedError: the pipeline takes no LoRA, or peft is not installed.
        UsageError: the pipeline has no such part.
        ArtifactError: a file that does not fit the model.
    """
    if not loras:
        return []
    check_lora(type(pipeline))
    told: list[str] = []
    names, strengths = [], []
    for index, given in enumerate(loras):
        lora = parse_lora(given) if isinstance(given, str) else given
        _load(pipeline, lora, f"lora{index}", partial, told)
        names.append(f"lora{index}")
        strengths.append(lora.strength)
    pipeline.set_adapters(names, strengths)
    return told


def match_loras(outline: Any, loras: Sequence[Lora], partial: bool = False) -> list[str]:
    """Match LoRA files with a model whose weights are not read; nothing is loaded into it.

    Args:
        outline: the model's parts without values, see :attr:`genkit.pipelines.model.Model.lora_outline`.
        loras, partial: as for :func:`apply_loras`, which returns and raises the same.
    """
    told: list[str] = []
    for lora in loras:
        _matched(outline, lora, partial, told)
    return told


def _matched(
    pipeline: Any, lora: Lora, partial: bool, told: list[str]
) -> list[tuple[str, dict[tuple[str, str], _Pair], bool]]:
    """What of a file goes where: (part, pairs, whether Diffusers reads the file itself the same way)."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(lora.path, "pt") as stream:
        facts = stream.metadata() or {}
    held = _read_file(pipeline, lora, load_file(lora.path), facts)
    found = []
    for part, pairs in _targets(pipeline, lora, held, told).items():
        used = _fitting(pipeline, lora, part, pairs, partial, told)
        found.append((part, used, held.plain and len(used) == len(pairs) == len(held.pairs)))
    return found


def _load(pipeline: Any, lora: Lora, name: str, partial: bool, told: list[str]) -> None:
    for part, used, same in _matched(pipeline, lora, partial, told):
        if same:
            given: Any = str(lora.path.parent)
            more = {"weight_name": lora.path.name, "local_files_only": True}
        else:
            given, more = _as_diffusers(used), {}
        if part == EXPERTS[1]:
            more["load_into_transformer_2"] = True
        try:
            pipeline.load_lora_weights(given, adapter_name=name, **more)
        except (ValueError, RuntimeError, KeyError, OSError, NotImplementedError, TypeError, IndexError) as error:
            raise ArtifactError(f"{place(lora.path)} does not fit {type(pipeline).__name__}: {_said(error)}") from error
        _check_loaded(pipeline, lora, name, used)


def _read_file(pipeline: Any, lora: Lora, raw: dict[str, torch.Tensor], facts: Mapping[str, str]) -> _File:
    """The pairs of a file under the pipeline's own names."""
    held = _File()
    plain: dict[str, torch.Tensor] = {}
    for key, value in raw.items():
        if _simplified(key) in plain:
            raise ArtifactError(_twice(lora, _simplified(key)))
        plain[_simplified(key)] = value
    if list(plain) != list(raw):
        held.plain = False
    alphas: dict[str, float] = {}
    if any(key.startswith(_TRANSLATED) for key in plain):
        plain, alphas = _translated(pipeline, lora, plain)
    elif any(key.endswith(".alpha") or not _is_peft(key) for key in plain):
        held.plain = False
    parts = _parts(pipeline)
    for key, value in plain.items():
        part, rest = _part_of(pipeline, parts, key)
        if not key.startswith(f"{part}."):
            held.plain = False
        _add(held, lora, part, rest, value)
    if alphas and any(part.startswith("text_encoder") for part, _ in held.pairs):
        held.plain = False  # Diffusers mistakes these names unless every kind of layer is there
    for key, value in alphas.items():
        part, rest = _part_of(pipeline, parts, key.removesuffix(".alpha"))
        found = _KEY.fullmatch(_peft_name(part, rest))
        if found and (part, found["module"]) in held.pairs:
            held.pairs[part, found["module"]].alpha = float(value)
    for (part, module), pair in held.pairs.items():
        _check_pair(lora, part, module, pair)
    _fill_alphas(held, lora, facts)
    if any(pair.bias is not None for pair in held.pairs.values()):
        _fill_biases(held)
    return held


def _simplified(key: str) -> str:
    """A name without what peft adds when it saves by itself."""
    key = key.removeprefix("base_model.model.")
    return re.sub(r"\.(lora_[AB])\.(?!weight$|bias$)\w+\.(weight|bias)$", r".\1.\2", key)


def _is_peft(key: str) -> bool:
    return ".lora_A." in key or ".lora_B." in key or key.endswith("lora_magnitude_vector")


def _translated(
    pipeline: Any, lora: Lora, plain: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Names of other programs as Diffusers translates them, and the alphas that it keeps apart."""
    more = {"unet_config": pipeline.unet.config} if getattr(pipeline, "unet", None) is not None else {}
    try:
        found = pipeline.lora_state_dict(dict(plain), return_lora_metadata=True, return_alphas=True, **more)
    except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(
            f"{place(lora.path)} cannot be translated for {type(pipeline).__name__}: {_said(error)}; "
            "a module may lack its alpha or one of its halves, or it was made for another model"
        ) from error
    weights, *others = found if isinstance(found, tuple) else (found,)
    alphas: dict[str, Any] = next(
        (other for other in others if other and all(key.endswith(".alpha") for key in other)), {}
    )
    return weights, alphas


def _parts(pipeline: Any) -> list[str]:
    """Names of the parts that take LoRA and are there, longest first."""
    named = [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]
    return sorted(named, key=len, reverse=True)


def _part_of(pipeline: Any, parts: Sequence[str], key: str) -> tuple[str, str]:
    """The part that a name belongs to, and the rest of the name; without a prefix, the denoiser."""
    for part in parts:
        if key.startswith(f"{part}."):
            rest = key.removeprefix(f"{part}.")
            flat = part.startswith("text_encoder") and not hasattr(getattr(pipeline, part), "text_model")
            return part, rest.removeprefix("text_model.") if flat else rest  # as Diffusers does it
    first = key.partition(".")[0]
    if first in ("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3"):
        return first, key.removeprefix(f"{first}.")  # a part that this pipeline does not have
    return next((part for part in ("unet", "transformer") if part in parts), parts[-1]), key


def _peft_name(part: str, key: str) -> str:
    """A name in peft's form; Diffusers' older names of attention layers are translated."""
    found = _OLD.fullmatch(key)
    if found is None:
        return key
    text = part.startswith("text_encoder")
    layer = {"out": "out_proj" if text else "to_out.0"}.get(found[2], f"{found[2]}_proj" if text else f"to_{found[2]}")
    return f"{found[1]}.{layer}.lora_{'A' if found[3] == 'down' else 'B'}.weight"


def _add(held: _File, lora: Lora, part: str, key: str, value: torch.Tensor) -> None:
    name = _peft_name(part, key)
    found = _KEY.fullmatch(name)
    if name.endswith(".alpha"):
        module, field = name.removesuffix(".alpha"), "alpha"
        if value.numel() != 1:
            raise ArtifactError(
                f"{place(lora.path)}: the alpha of {_short(f'{part}.{module}')} has shape {tuple(value.shape)}, "
                "allowed: one number"
            )
        value = float(value)
    elif ".lora_magnitude_vector" in name:
        module, field = name.partition(".lora_magnitude_vector")[0], "magnitude"
    elif found is None:
        raise ArtifactError(f"{place(lora.path)} holds {_short(key)}, which is no part of a LoRA")
    else:
        down = found["half"] in _HALVES["A"]
        module, field = found["module"], "bias" if found["kind"] == "bias" else "down" if down else "up"
    pair = held.pairs.setdefault((part, module), _Pair())
    if getattr(pair, field) is not None:
        raise ArtifactError(_twice(lora, f"{part}.{key}"))
    setattr(pair, field, value)


def _twice(lora: Lora, key: str) -> str:
    return f"{place(lora.path)} holds {_short(key)} twice, under two names; which of them counts is not known"


def _check_pair(lora: Lora, part: str, module: str, pair: _Pair) -> None:
    if pair.down is None or pair.up is None:
        missing = "lora_A" if pair.down is None else "lora_B"
        raise ArtifactError(f"{place(lora.path)} has no {missing} for {_short(f'{part}.{module}')}; it is incomplete")
    if min(pair.down.ndim, pair.up.ndim) < 2 or pair.down.shape[0] != pair.up.shape[1]:
        shapes = f"{tuple(pair.down.shape)} and {tuple(pair.up.shape)}"
        raise ArtifactError(f"{place(lora.path)}: the halves of {_short(f'{part}.{module}')} have shapes {shapes}")
    if pair.alpha is not None and not math.isfinite(pair.alpha):
        raise ArtifactError(f"{place(lora.path)}: the alpha of {_short(f'{part}.{module}')} is {pair.alpha}")


@open_keys
@dataclass(frozen=True)
class _Adapter:
    """What peft stores beside or inside a file about its scale."""

    r: int | None = None
    lora_alpha: int | float | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = field(default_factory=dict)
    use_rslora: bool = False

    def alpha(self, module: str, rank: int) -> float | None:
        """The alpha that gives a module its scale when divided by its rank."""
        fits = next((value for name, value in self.alpha_pattern.items() if _matches(name, module)), self.lora_alpha)
        if fits is None:
            return None
        return float(fits) * math.sqrt(rank) if self.use_rslora else float(fits)


def _matches(pattern: str, module: str) -> bool:
    plain = pattern.removeprefix("^").removesuffix(".lora_B.weight")
    return module == plain or module.endswith(f".{plain}")


def _fill_alphas(held: _File, lora: Lora, facts: Mapping[str, str]) -> None:
    """Alphas from the file's metadata, or from the adapter_config.json that peft writes beside it."""
    name = f"{place(lora.path)}, lora_adapter_metadata"
    stored = read(dict[str, Any], parse_json(facts.get("lora_adapter_metadata", "{}"), name), name, ArtifactError)
    beside = lora.path.with_name("adapter_config.json")
    config = None
    if not stored and not held.plain and beside.is_file():
        config = read(_Adapter, read_json(beside), place(beside), ArtifactError)
    by_part: dict[str, _Adapter] = {}
    for (part, module), pair in held.pairs.items():
        if part not in by_part:
            own = {key.removeprefix(f"{part}."): value for key, value in stored.items() if key.startswith(f"{part}.")}
            by_part[part] = read(_Adapter, own, name, ArtifactError) if own else config or _Adapter()
        if pair.alpha is None:
            pair.alpha = by_part[part].alpha(module, pair.down.shape[0])
    given = [pair.alpha is not None for pair in held.pairs.values()]
    if any(given) and not all(given):
        part, module = next(key for key, pair in held.pairs.items() if pair.alpha is None)
        raise ArtifactError(
            f"{place(lora.path)} has an alpha for {sum(given)} of {len(given)} modules, none for "
            f"{_short(f'{part}.{module}')}; its strength there is not known"
        )


def _fill_biases(held: _File) -> None:
    """Zeros where only other modules have a bias: peft would leave them without values."""
    import torch

    for pair in held.pairs.values():
        if pair.bias is None:
            pair.bias = torch.zeros(pair.up.shape[0], dtype=pair.up.dtype)
            held.plain = False


def _targets(pipeline: Any, lora: Lora, held: _File, told: list[str]) -> dict[str, dict[tuple[str, str], _Pair]]:
    """Which pairs to load together, by the expert that they go to (or the denoiser, text encoders with it)."""
    parts = _parts(pipeline)
    if lora.part is not None and lora.part not in parts:
        raise UsageError(explain(f"--lora ...:{lora.part}", lora.part, sorted(parts)))
    named = {part for part, _ in held.pairs}
    if not set(EXPERTS) <= set(parts):
        kept = {key: pair for key, pair in held.pairs.items() if lora.part in (None, key[0])}
        if not kept:
            raise ArtifactError(
                f"{place(lora.path)} holds nothing for {lora.part}, only for {', '.join(sorted(named))}"
            )
        return {parts[-1] if lora.part is None else lora.part: kept}
    if EXPERTS[1] in named and lora.part is None:
        groups: dict[str, dict[tuple[str, str], _Pair]] = {}
        for (part, module), pair in held.pairs.items():
            groups.setdefault(EXPERTS[1] if part == EXPERTS[1] else EXPERTS[0], {})[part, module] = pair
        return groups
    wanted = EXPERTS if lora.part is None else (lora.part,)
    if lora.part is None:
        told.append(
            f"LoRA {lora.path.name} was applied to both experts; "
            f"to choose one add :{EXPERTS[0]} or :{EXPERTS[1]} to its name"
        )
    own = lora.part if lora.part in named else EXPERTS[0]
    pairs = {module: pair for (part, module), pair in held.pairs.items() if part == own}
    return {part: {(part, module): pair for module, pair in pairs.items()} for part in wanted}


def _fitting(
    pipeline: Any, lora: Lora, part: str, pairs: dict[tuple[str, str], _Pair], partial: bool, told: list[str]
) -> dict[tuple[str, str], _Pair]:
    """The pairs that have a module of their shape; all of them, unless ``partial``."""
    reasons = {key: _why_unfit(pipeline, *key, pair) for key, pair in pairs.items()}
    used = {key: pair for key, pair in pairs.items() if reasons[key] is None}
    if len(used) == len(pairs):
        return used
    first = next(key for key, why in reasons.items() if why is not None)
    line = (
        f"{place(lora.path)}: used {len(used)} of {len(pairs)} modules for {type(pipeline).__name__}'s {part}, "
        f"first unused {_short('.'.join(first))} ({reasons[first]})"
    )
    if not used:
        raise ArtifactError(f"{line}; it does not fit, it was made for another model")
    if not partial:
        raise ArtifactError(f"{line}; it does not fit this model; --lora-partial loads what fits")
    told.append(line)
    return used


def _why_unfit(pipeline: Any, part: str, module: str, pair: _Pair) -> str | None:
    if part not in _parts(pipeline):
        return f"the pipeline has no {part} that takes LoRA"
    try:
        found = getattr(pipeline, part).get_submodule(module)
    except AttributeError:
        return "the model has no such module"
    weight = getattr(getattr(found, "base_layer", found), "weight", None)
    if weight is None or weight.ndim < 2:
        return f"it is a {type(found).__name__}, which takes no LoRA"
    here, there = (weight.shape[1], weight.shape[0]), (pair.down.shape[1], pair.up.shape[0])
    return None if here == there else f"it maps {here[0]} to {here[1]} here, {there[0]} to {there[1]} in the file"


def _as_diffusers(pairs: Mapping[tuple[str, str], _Pair]) -> dict[str, torch.Tensor]:
    """Pairs under Diffusers' names, their scale multiplied into the upper half."""
    found = {}
    for (part, module), pair in pairs.items():
        prefix = f"{EXPERTS[0] if part == EXPERTS[1] else part}.{module}"
        scale = 1.0 if pair.alpha is None else pair.alpha / pair.down.shape[0]
        found[f"{prefix}.lora_A.weight"] = pair.down
        found[f"{prefix}.lora_B.weight"] = pair.up if scale == 1 else (pair.up.double() * scale).to(pair.up.dtype)
        if pair.bias is not None:
            found[f"{prefix}.lora_B.bias"] = (pair.bias.double() * scale).to(pair.bias.dtype)
        if pair.magnitude is not None:
            found[f"{prefix}.lora_magnitude_vector"] = pair.magnitude
    return found


def _check_loaded(pipeline: Any, lora: Lora, name: str, used: Mapping[tuple[str, str], _Pair]) -> None:
    """Every used module carries the adapter, with values."""
    for part, module in used:
        layer = getattr(pipeline, part).get_submodule(module)
        down = getattr(layer, "lora_A", {})
        if name not in down:
            raise ArtifactError(
                f"{place(lora.path)}: Diffusers left out {_short(f'{part}.{module}')}; it does not fit this model"
            )
        empty = [key for key, value in layer.named_parameters() if f".{name}." in f".{key}." and value.is_meta]
        if empty:
            raise ArtifactError(f"{place(lora.path)} has no values for {empty[0]} of {_short(f'{part}.{module}')}")


def _short(name: str) -> str:
    return shortened(escaped(name), 120)


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shortened(escaped(lines[0]), 300) if lines else type(error).__name__
