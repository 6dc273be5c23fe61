"""What ``genkit train lora`` takes: one schema for flags and file, and the rules between settings.

Nothing here needs torch: the command line is made of these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, counted, explain
from genkit.pipelines.request import flag
from genkit.pipelines.settings import AUTO
from genkit.training.lora.counterparts import counterpart, foreign, known
from genkit.training.lora.groups import (
    BUDGETS,
    HUBER,
    LOGIT_NORMAL,
    LOKR,
    LORA,
    MODE,
    POLYNOMIAL,
    RESTARTS,
    AdapterSettings,
    CheckpointSettings,
    DataSettings,
    LossSettings,
    MethodWeightsSettings,
    MixSettings,
    ModelSettings,
    OptimizationSettings,
    RoutingSettings,
    ValidationSettings,
)
from genkit.training.lora.words.settings import WordSettings, check_words


@dataclass(frozen=True)
class LoraSettings(
    ValidationSettings,
    CheckpointSettings,
    MethodWeightsSettings,
    LossSettings,
    RoutingSettings,
    OptimizationSettings,
    DataSettings,
    WordSettings,
    MixSettings,
    AdapterSettings,
    ModelSettings,
):
    """Everything that decides what ``genkit train lora`` makes. The last group comes first in ``--help``."""

    def check(self) -> None:
        """Rules between settings; what depends on the model is checked when a plan is made of them."""
        super().check()
        for name, example in (("model", "toy-video"), ("data", "clips"), ("output", "runs/lora")):
            if not getattr(self, name):
                raise UsageError(f"training needs {flag(name)}, for instance {flag(name)} {example}")
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(map(flag, given)) or "none"
            raise UsageError(explain("budget", found, f"one of {', '.join(map(flag, BUDGETS))}"))
        if self.train_attention_weights and self.attention is None and self.recipe is None:
            raise UsageError("--train-attention-weights needs --attention NAME or --recipe FILE")
        if self.attention == AUTO:
            raise UsageError(
                "--attention auto takes the method from a LoRA that is used; in training name one (see genkit "
                "methods), or leave it out"
            )
        if self.route is not None:
            self._check_route()
        self._check_adapter()
        self._check_effects()
        check_words(self)
        if self.min_level >= self.max_level:
            raise UsageError(f"--min-level {self.min_level:g} must be below --max-level {self.max_level:g}")
        if self.validation_images and len(self.validation_images) != len(self.validation_prompts):
            raise UsageError(
                f"--validation-images: got {len(self.validation_images)} for "
                f"{counted(len(self.validation_prompts), 'validation prompt')}, allowed: one for each"
            )

    def _check_route(self) -> None:
        for name, why in (
            ("compile", "compiled blocks have one length"),
            ("learn_words", "masks of words are read off all tokens"),
            ("mix", "a router chooses for all tokens"),
        ):
            if getattr(self, name):
                raise UsageError(f"--route does not go with {flag(name)}: {why}; leave one of the two out")

    def _check_adapter(self) -> None:
        own = [name for name in AdapterSettings.__annotations__ if getattr(self, name) and self._differs(name)]
        if self.mix and own:
            raise UsageError(f"{flag(own[0])} belongs to a LoRA in training; those of --mix are finished: leave it out")
        if self.mix and self.train_attention_weights:
            raise UsageError("--train-attention-weights goes with a LoRA in training; leave it or --mix out")
        if len(self.mix) == 1:
            raise UsageError(explain("--mix", self.mix[0], "two LoRA files or more to choose among"))
        for name in ("mix_balance", "mix_certainty"):
            if self._differs(name) and not self.mix:
                raise UsageError(f"{flag(name)} has no effect without --mix")
        if self.adapter == LOKR:
            for name in ("use_rslora", "use_dora", "lora_dropout", "init_lora_weights", "init_lora"):
                if self._differs(name):
                    raise UsageError(f"{flag(name)} goes with --adapter {LORA}; {LOKR} has none of it")
        if self.use_dora and self.quantization is not None:
            raise UsageError("--use-dora needs the norms of whole weights; leave --quantization out")

    def _check_effects(self) -> None:
        """Refuse settings that would have no effect."""
        needed: tuple[tuple[str, str, Any], ...] = (
            ("lokr_factor", "adapter", LOKR),
            ("mode_scale", "timestep_sampling", MODE),
            ("huber_delta", "loss_type", HUBER),
            ("lr_num_cycles", "lr_scheduler", RESTARTS),
            ("lr_power", "lr_scheduler", POLYNOMIAL),
            ("ema_decay", "use_ema", True),
            ("frame_stride", "frame_extraction", "slide"),
            ("frame_samples", "frame_extraction", "uniform"),
        )
        for name, other, value in needed:
            if self._differs(name) and getattr(self, other) != value and not self._set_by_source(name, other):
                wanted = flag(other) if value is True else f"{flag(other)} {value}"
                raise UsageError(f"{flag(name)} has no effect without {wanted}")
        for name in ("logit_mean", "logit_std"):
            if self._differs(name) and self.timestep_sampling not in (None, LOGIT_NORMAL):
                raise UsageError(f"{flag(name)} has no effect with --timestep-sampling {self.timestep_sampling}")
        if self.quantization_args and self.quantization is None:
            raise UsageError("--quantization-args needs --quantization NAME")
        if self.hub_model_id is not None and not self.push_to_hub:
            raise UsageError("--hub-model-id has no effect without --push-to-hub")
        if self.unmasked_weight and self.masks is None and all(source.masks is None for source in self.data):
            if not any(source.is_toml for source in self.data):
                raise UsageError("--unmasked-weight has no effect without --masks FOLDER")
        if not self.validation_prompts:
            for name in ValidationSettings.__annotations__:
                if self._differs(name) and not (name == "validation_steps" and self.held_out):
                    raise UsageError(f"{flag(name)} has no effect without --validation-prompts")

    def _differs(self, name: str) -> bool:
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def _set_by_source(self, name: str, other: str) -> bool:
        """Whether single folders may say the other setting for themselves."""
        own = any(source.is_toml or getattr(source, other, None) is not None for source in self.data)
        return other in DataSettings.__annotations__ and own

    @classmethod
    def unknown(cls, origin: str, values: Mapping[str, Any]) -> str:
        """See :meth:`Settings.unknown`: names of other trainers are answered with their counterparts."""
        return foreign(origin, values, cls.field_names())

    @classmethod
    def counterpart(cls, name: str) -> str:
        """See :meth:`Settings.counterpart`."""
        return counterpart(name, cls.field_names()) if known(name) else ""

    @classmethod
    def merge(cls, before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """A later budget replaces an earlier one of another kind; another optimizer drops the earlier arguments."""
        if any(name in given for name in BUDGETS):
            before = {key: value for key, value in before.items() if key not in BUDGETS}
        for name in ("optimizer", "quantization"):
            if name in given and given[name] != before.get(name):
                before = {key: value for key, value in before.items() if key != f"{name}_args"}
        return super().merge(before, given)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Settings.to_dict`; folders as plain mappings."""
        return {**super().to_dict(), "data": [source.to_dict() for source in self.data]}
