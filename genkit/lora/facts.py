"""What a LoRA file says about itself beside its weights: how it was made, and what other programs show.

Diffusers reads ``lora_adapter_metadata``, which :func:`adapter_metadata` makes; genkit's own facts are JSON under
``genkit``; ``ss_`` and ``modelspec.`` texts are for programs that show or sort LoRA files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError
from genkit.families.lookup import records
from genkit.reading import parse_json
from genkit.schema import open_keys, read

if TYPE_CHECKING:
    from genkit.lora.pair import Pair

ADAPTER_KEY, FACTS_KEY = "lora_adapter_metadata", "genkit"


@open_keys
@dataclass(frozen=True)
class Sampling:
    """How a model is sampled under a LoRA that was distilled for it.

    Args:
        steps: denoising steps.
        guidance_scale: 1 for none.
        scheduler: class of Diffusers' scheduler, of the first order.
        flow_shift: of its noise levels; None of a scheduler with a table of betas.
        stream: of a student that answers chunk by chunk, the settings of :class:`genkit.streaming.Stream` that it was
            made for; empty for others.
    """

    steps: int
    guidance_scale: float
    scheduler: str
    flow_shift: float | None = None
    stream: dict[str, Any] = field(default_factory=dict)


@open_keys
@dataclass(frozen=True)
class Facts:
    """What genkit knows about a LoRA; all of it is optional. No wall-clock time, so that equal runs give equal files.

    Args:
        made_by: "train", "distill", "merge", "extract", "resize" or "convert".
        family: name of the model's family, as ``genkit families`` lists it.
        pipeline: class of the pipeline.
        base_model: name of the model as settings store it.
        base_fingerprint: of its folder, see :func:`genkit.models.check.fingerprint`.
        component: the denoiser that was trained ("transformer_2" of models with two experts).
        adapter: "lora", "dora" or "lokr", as trained.
        rank, alpha: as trained; in the file alpha is multiplied into the upper halves.
        attention, attention_args, schedule, recipe: the attention in the loop, as settings store it; all empty when
            the model's own was trained through.
        attention_weights: file with the method's own weights, beside the LoRA.
        attention_known: whether these tell what it was trained through; False for merged and foreign files.
        steps: optimizer steps.
        dataset: digest of the data set.
        trigger_word: what a prompt must say.
        new_words: words of the captions that the model's tokenizers do not know, in small letters.
        words: words whose embeddings were learned and lie beside the LoRA, and the text encoder that takes them.
        sampling: how it is sampled, of a few-step student; None for as the model always is.
        title: what it is, in words.
        settings: all settings of the run.
        versions: packages it was made with.
        sources: the files it was made of, by ``genkit lora``.
        error: relative error of a decomposition, in the Frobenius norm over all modules.
    """

    made_by: str = "train"
    family: str | None = None
    pipeline: str | None = None
    base_model: str | None = None
    base_fingerprint: str | None = None
    component: str | None = None
    adapter: str = "lora"
    rank: int | None = None
    alpha: float | None = None
    attention: str | None = None
    attention_args: dict[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    recipe: str | None = None
    attention_weights: str | None = None
    attention_known: bool = True
    steps: int | None = None
    dataset: str | None = None
    trigger_word: str | None = None
    new_words: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    sampling: Sampling | None = None
    title: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    sources: list[Any] = field(default_factory=list)
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known, as plain JSON values; ``made_by`` is always there."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        defaults = {each.name: getattr(Facts(), each.name) for each in dataclasses.fields(self)}
        if self.sampling is not None:
            told = dataclasses.asdict(self.sampling)
            values["sampling"] = {name: value for name, value in told.items() if name != "stream" or value}
        return {name: value for name, value in values.items() if name == "made_by" or value != defaults[name]}

    @property
    def trained_through(self) -> dict[str, Any]:
        """The facts about the attention in the loop."""
        names = ("attention", "attention_args", "schedule", "recipe", "attention_weights", "attention_known")
        return {name: getattr(self, name) for name in names}

    def replace(self, **changes: Any) -> Facts:
        """With other values."""
        return dataclasses.replace(self, **changes)


def read_facts(metadata: Mapping[str, str], name: str) -> Facts | None:
    """The facts in the texts of a file; None when genkit did not make it.

    Raises:
        ArtifactError: facts that are no JSON or of the wrong types; ``name`` is the file in the message.
    """
    text = metadata.get(FACTS_KEY)
    if text is None:
        return None
    return read(Facts, parse_json(text, f"{name}, {FACTS_KEY}", finite=True), f"{name}, {FACTS_KEY}", ArtifactError)


def adapter_metadata(pairs: Mapping[tuple[str, str], Pair]) -> dict[str, Any]:
    """peft's configuration of every component, under names as Diffusers stores them: ``"transformer.r": 4``, ...

    Alphas are the ranks: the scale is in the weights. Names in ``rank_pattern`` are of whole modules.

    Args:
        pairs: by (component, module), alpha multiplied in.
    """
    found: dict[str, Any] = {}
    for component in dict.fromkeys(part for part, _ in pairs):
        ranks = {module: pair.rank for (part, module), pair in sorted(pairs.items()) if part == component}
        counts = list(ranks.values())
        common = max(sorted(set(counts)), key=counts.count)
        pattern = {f"^{module}": rank for module, rank in ranks.items() if rank != common}
        own = [pair for (part, _), pair in pairs.items() if part == component]
        config = {
            "peft_type": "LORA",
            "r": common,
            "lora_alpha": common,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
            "target_modules": sorted(ranks),
            "use_dora": any(pair.magnitude is not None for pair in own),
            "use_rslora": False,
            "lora_bias": any(pair.bias is not None for pair in own),
            "bias": "none",
            "init_lora_weights": True,
        }
        found |= {f"{component}.{key}": value for key, value in config.items()}
    return found


def metadata_of(facts: Facts, adapter: Mapping[str, Any] | None) -> dict[str, str]:
    """The texts of a file's header.

    Args:
        facts: what genkit stores.
        adapter: from :func:`adapter_metadata`; None for names that Diffusers would not read it with.
    """
    from genkit import __version__

    texts = {"format": "pt", FACTS_KEY: json.dumps(facts.to_dict(), sort_keys=True)}
    if adapter is not None:
        texts[ADAPTER_KEY] = json.dumps(adapter, indent=2, sort_keys=True)
    shown = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": facts.rank,
        "ss_network_alpha": facts.alpha if facts.alpha is not None else facts.rank,
        "ss_sd_model_name": facts.base_model,
        "ss_base_model_version": _architecture(facts.family),
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.steps,
        **{f"ss_{name}": facts.settings.get(name) for name in _SETTINGS},
        "ss_lr_warmup_steps": facts.settings.get("lr_warmup_steps"),
        "ss_tag_frequency": json.dumps({"genkit": {facts.trigger_word: 1}}) if facts.trigger_word else None,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_architecture(facts.family) or 'unknown'}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": facts.title or facts.trigger_word or "LoRA",
        "modelspec.trigger_phrase": facts.trigger_word,
        "modelspec.resolution": _resolution(facts.settings.get("resolution")),
        "modelspec.merged_from": ",".join(map(str, facts.sources)) or None,
        "modelspec.description": f"made by genkit {__version__}",
    }
    return texts | {name: _text(value) for name, value in shown.items() if value is not None}


#: Settings that other programs show under the same name.
_SETTINGS = ("learning_rate", "optimizer", "lr_scheduler", "seed", "max_grad_norm", "gradient_accumulation_steps")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _resolution(sizes: Any) -> str | None:
    """The first of the sizes that were trained, width before height as other programs have it."""
    first = sizes[0] if isinstance(sizes, (list, tuple)) and sizes else sizes
    if not isinstance(first, (str, int)):
        return None
    height, _, width = str(first).partition("x")
    return f"{width or height}x{height}"


def _architecture(family: str | None) -> str | None:
    """What other programs call a family of models, where they have a name for it; else its own."""
    known = {record.name: record.facts.architecture for record in records()}
    return known.get(family or "") or family
