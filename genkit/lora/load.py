"""Loading LoRA files into a pipeline, whole or, when asked, in part.

Diffusers drops what does not fit without an error. Here every module of a file is matched with the pipeline first: with
its outline before weights are read, and with the pipeline itself when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, explain, said
from genkit.lora.door import activate, adapters_of, add_adapter, has_loader, loadable
from genkit.lora.facts import Facts
from genkit.lora.files import STRONGEST, Lora, lora_file, parse_lora
from genkit.lora.keys import short
from genkit.lora.match import EXPERTS, Matched, match
from genkit.lora.pair import Pair
from genkit.lora.pairs import CONVERTERS_RAISE
from genkit.lora.save import peft_tensors
from genkit.lora.strengths import StepFactors, StepStrengths, check_factor, layer_factors
from genkit.lora.words import load_words
from genkit.reading import user_path
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch


def check_lora(pipeline_class: type) -> None:
    """Refuse a pipeline class that takes no LoRA, and a machine without peft; UnsupportedError."""
    if not loadable(pipeline_class):
        raise UnsupportedError(f"{pipeline_class.__name__} takes no LoRA")
    if find_spec("peft") is None:
        raise UnsupportedError("a LoRA (--lora, --fast) needs the package peft; pip install 'genkit[train]'")


def apply_loras(
    pipeline: Any,
    loras: Sequence[Lora | str],
    partial: bool = False,
    matches: Sequence[Matched] = (),
    shares: Sequence[Share] = (),
) -> list[str]:
    """Load LoRA files into a pipeline under the names ``lora0``, ``lora1``, ... with their strengths.

    Args:
        pipeline: a loaded Diffusers pipeline.
        loras: in order.
        partial: load what fits of a file that fits in part, instead of refusing it.
        matches: what :func:`match_loras` found for the same files and model, which are then not read again.
        shares: strengths by layer and step, one a file; none when empty.

    Returns:
        What the user should know, one line each: files that were used in part, or for both experts.

    Raises:
        UnsupportedError: the pipeline takes no LoRA, or peft is not installed.
        UsageError: the pipeline has no such part or layer.
        ArtifactError: a file that does not fit the model.
    """
    if not loras:
        return []
    check_lora(type(pipeline))
    if not matches:
        found = (parse_lora(given) if isinstance(given, str) else given for given in loras)
        matches = [match(pipeline, lora, partial) for lora in found]
    told = []
    for index, each in enumerate(matches):
        _load(pipeline, each, f"lora{index}")
        told += each.told
    activate(pipeline, [f"lora{index}" for index in range(len(matches))], [each.lora.strength for each in matches])
    for index, (each, share) in enumerate(zip(matches, shares, strict=False)):
        set_share(pipeline, each, f"lora{index}", share)
    return told


def load_lora(
    pipeline: Any,
    file: str | Path,
    strength: float = 1.0,
    *,
    part: str | None = None,
    partial: bool = False,
    layers: Mapping[str, float] | None = None,
    steps: str | None = None,
) -> LoadedLora:
    """Load a LoRA file of any common form into a pipeline, beside those that are there.

    Every module of the file must have its place in the model; stock Diffusers drops what does not fit. The adapter is
    an ordinary one of peft: ``pipeline.set_adapters``, ``fuse_lora`` and ``unload_lora_weights`` know it.

    Args:
        pipeline: a Diffusers pipeline, patched or not.
        file: a safetensors file with names of PEFT, Diffusers, ComfyUI, Kohya or DiffSynth, or a folder with one.
        strength: factor of the change, from -100 to 100.
        part: the expert that it goes to, of a pipeline with two; what the file says, else both, when left out.
        partial: load what fits of a file that fits in part.
        layers: factors by name, ``{"blocks.1": 0.3, "attn2": 0}``; names are whole, so ``blocks.1`` is not
            ``blocks.10``. Layers that no name means keep the strength.
        steps: sampling steps in which it acts, ``"0:10"``, or factors by step, ``"0:10=1,10:=0.3"``. A compiled
            model is not compiled anew.

    Returns:
        The adapter's name, how many modules it changes, the facts in the file, and what is worth knowing.

    Raises:
        UnsupportedError: the pipeline takes no LoRA, or peft is not installed.
        UsageError: a value of another kind, no such part or layer, or a strength beyond the bounds.
        ArtifactError: a file that is none, is damaged, or does not fit the model.
    """
    check_lora(type(pipeline))
    check_factor("strength", strength, STRONGEST)
    if part is not None and not isinstance(part, str):
        raise UsageError(explain("part", part, "the name of a part of the pipeline, or None"))
    if not isinstance(partial, bool):
        raise UsageError(explain("partial", partial, "True or False"))
    if layers is not None and not isinstance(layers, Mapping):
        raise UsageError(explain("layers", layers, 'factors by name, such as {"blocks.1": 0.3}, or None'))
    found = match(pipeline, Lora(lora_file(user_path(file, "LoRA")), float(strength), part), partial)
    share = Share(dict(layers or {}), None if steps is None else StepFactors.parse(steps, "steps"), "layers")
    share.check(found)
    there = adapters_of(pipeline)
    name = next(f"lora{number}" for number in range(len(there) + 1) if f"lora{number}" not in there)
    before = [(layer, own, scale) for layer in _tuned(pipeline) for own, scale in layer.scaling.items()]
    active = [own for own in there if any(own in layer.active_adapters for layer, _, _ in before)]
    _load(pipeline, found, name)
    activate(pipeline, [*active, name], [*(1.0 for _ in active), found.lora.strength])
    for layer, own, scale in before:
        layer.scaling[own] = scale
    set_share(pipeline, found, name, share)
    return LoadedLora(name, sum(len(group.pairs) for group in found.groups), found.facts, tuple(found.told))


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA in a pipeline.

    Args:
        name: of the adapter.
        modules: how many it changes.
        facts: what genkit wrote into the file; None for files of other programs.
        told: what is worth knowing, one line each.
    """

    name: str
    modules: int
    facts: Facts | None
    told: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """How a LoRA's strength differs by layer and by step.

    Args:
        layers: name -> factor, see :func:`genkit.lora.strengths.layer_factors`.
        steps: factors by step; None for the same in all.
        what: where the layers' names were given.
    """

    layers: Mapping[str, float] = field(default_factory=dict)
    steps: StepFactors | None = None
    what: str = "--lora-layers"

    def check(self, found: Matched) -> dict[str, float]:
        """The factor of every module of a file; UsageError for a name that means none."""
        paths = [".".join(key) for group in found.groups for key in group.pairs]
        return layer_factors(paths, self.layers, self.what) if self.layers else {}


def set_share(pipeline: Any, found: Matched, name: str, share: Share) -> None:
    """Give the layers of a loaded adapter their own strengths."""
    for path, factor in share.check(found).items():
        part, _, module = path.partition(".")
        getattr(pipeline, part).get_submodule(module).set_scale(name, found.lora.strength * factor)
    if share.steps is not None:
        strengths = StepStrengths(pipeline)
        for part in dict.fromkeys(part for group in found.groups for part, _ in group.pairs):
            if not part.startswith("text_encoder"):
                strengths.follow(getattr(pipeline, part), name, share.steps)


def _tuned(pipeline: Any) -> list[Any]:
    """The layers of a pipeline that carry LoRA."""
    parts = [getattr(pipeline, part, None) for part in loadable(pipeline)]
    return [layer for part in parts if part is not None for layer in part.modules() if hasattr(layer, "lora_A")]


def match_loras(outline: Any, loras: Sequence[Lora], partial: bool = False) -> list[Matched]:
    """Match LoRA files with a model whose weights are not read; nothing is loaded into it.

    Args:
        outline: the model's parts without values, see :attr:`genkit.pipelines.model.Model.lora_outline`.
        loras, partial: as for :func:`apply_loras`, which raises the same.
    """
    return [match(outline, lora, partial) for lora in loras]


def _load(pipeline: Any, found: Matched, name: str) -> None:
    path = found.lora.path
    for group in found.groups:
        if not has_loader(pipeline):
            add_adapter(pipeline, group.part, as_diffusers(group.pairs), name)
            _check_loaded(pipeline, found.lora, name, group.pairs)
            continue
        if group.same:
            given: Any = str(path.parent)
            more = {"weight_name": path.name, "local_files_only": True}
        else:
            given, more = as_diffusers(group.pairs), {}
        if group.part == EXPERTS[1]:
            more["load_into_transformer_2"] = True
        try:
            pipeline.load_lora_weights(given, adapter_name=name, **more)
        except (*CONVERTERS_RAISE, OSError) as error:
            raise ArtifactError(f"{place(path)} does not fit {type(pipeline).__name__}: {said(error)}") from error
        _check_loaded(pipeline, found.lora, name, group.pairs)
    load_words(pipeline, path, found.facts)


def as_diffusers(pairs: Mapping[tuple[str, str], Pair]) -> dict[str, torch.Tensor]:
    """Pairs under Diffusers' names, their scale multiplied into the upper half."""
    return peft_tensors(
        {(EXPERTS[0] if part == EXPERTS[1] else part, module): pair.folded() for (part, module), pair in pairs.items()}
    )


def _check_loaded(pipeline: Any, lora: Lora, name: str, used: Mapping[tuple[str, str], Pair]) -> None:
    """Every used module carries the adapter, with values."""
    for part, module in used:
        layer = getattr(pipeline, part).get_submodule(module)
        down = getattr(layer, "lora_A", {})
        if name not in down:
            raise ArtifactError(
                f"{place(lora.path)}: Diffusers left out {short(f'{part}.{module}')}; it does not fit this model"
            )
        empty = [key for key, value in layer.named_parameters() if f".{name}." in f".{key}." and value.is_meta]
        if empty:
            raise ArtifactError(f"{place(lora.path)} has no values for {empty[0]} of {short(f'{part}.{module}')}")
