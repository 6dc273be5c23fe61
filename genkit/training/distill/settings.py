"""What ``genkit train distill`` takes: one schema for flags and file. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError, explain
from genkit.pipelines.request import NEVER, WHEN_GIVEN, Settings, flag, option
from genkit.pipelines.settings import AUTO, DTYPE_CHOICES, MODEL, as_dtype
from genkit.schema import Rule
from genkit.training.lora.groups import (
    LORA,
    AdapterSettings,
    CheckpointSettings,
    MethodWeightsSettings,
    OptimizationSettings,
)

#: Value of ``prompts``: captions of the toy world, for the shipped models.
WORLD = "world"
_GROUP = "What is trained"
_STUDENT = "Teacher and student"


@dataclass(frozen=True)
class StudentSettings(Settings):
    """What is distilled, from which prompts, and into how many steps."""

    model: str = option("", MODEL, group=_GROUP)
    parts_from: str | None = option(
        None, "For a whole model in one file as --model: Diffusers folder or hub id of a model of its kind, with the "
        "configurations and what the file does not hold.", group=_GROUP, stored=WHEN_GIVEN,
    )  # fmt: skip
    prompts: str = option(
        "", "Text file with a prompt on every line, or 'world' for captions of the toy world (shipped models).",
        group=_GROUP,
    )  # fmt: skip
    output: str = option(
        "", "Folder for pytorch_lora_weights.safetensors, checkpoints and log.", group=_GROUP, stored=NEVER
    )
    dtype: str = option(
        "auto", "Of the frozen model: auto, float32, bfloat16 or float16 (fp32, bf16, fp16). The LoRA is float32.",
        group=_GROUP, parse=as_dtype, rule=Rule(choices=DTYPE_CHOICES),
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, ...", group=_GROUP, stored=NEVER)
    steps: int = option(6, "Denoising steps of the student.", group=_STUDENT, rule=Rule(low=1, high=100))
    substeps: int = option(
        3, "Steps of the teacher in each of the student's: more are closer to the model's own path and slower.",
        group=_STUDENT, rule=Rule(low=1, high=100),
    )  # fmt: skip
    guidance_scale: float | None = option(
        None, "Guidance of the teacher, which the student learns to do without; the model's own when left out.",
        group=_STUDENT, rule=Rule(low=0, high=1000),
    )  # fmt: skip
    negative_prompt: str = option("", "What the teacher is guided away from.", group=_STUDENT, prose=True)
    own_path: float = option(
        0.5, "Share of samples that go on from where the student's step led, the others from the teacher's: the "
        "student meets, and learns to mend, its own errors.", group=_STUDENT, rule=Rule(low=0, high=1),
    )  # fmt: skip
    height: int | None = option(None, "Pixels; the model's own when left out.", group=_STUDENT)
    width: int | None = option(None, "Pixels; the model's own when left out.", group=_STUDENT)
    num_frames: int | None = option(None, "Frames of a clip; the model's own when left out.", group=_STUDENT)
    max_sequence_length: int | None = option(
        None, "Text tokens of a prompt; the model's own when left out.", group=_STUDENT, rule=Rule(low=1, high=100_000)
    )


@dataclass(frozen=True)
class DistillSettings(
    CheckpointSettings, MethodWeightsSettings, OptimizationSettings, AdapterSettings, StudentSettings
):
    """Everything that decides what ``genkit train distill`` makes. The last group comes first in ``--help``."""

    def check(self) -> None:
        """Rules between settings; what depends on the model is checked when the run is opened."""
        super().check()
        for name, example in (("model", "toy-video"), ("prompts", WORLD), ("output", "runs/fast")):
            if not getattr(self, name):
                raise UsageError(f"distillation needs {flag(name)}, for instance {flag(name)} {example}")
        budgets = [name for name in ("max_train_steps", "minutes") if getattr(self, name) is not None]
        if len(budgets) != 1:
            found = " and ".join(map(flag, budgets)) or "none"
            raise UsageError(explain("budget", found, "one of --max-train-steps, --minutes"))
        if self.num_train_epochs is not None:
            raise UsageError("--num-train-epochs counts passes over data; prompts have none: give --max-train-steps")
        if self.adapter != LORA or self.use_dora:
            raise UsageError("a student is a plain LoRA, which every program loads: leave --adapter and --use-dora out")
        if self.attention == AUTO:
            raise UsageError("--attention auto takes the method from a LoRA that is used; in training name one")
        if self.train_attention_weights:
            raise UsageError("--train-attention-weights is for genkit train lora: leave it out")
        if self.offload != "none" or self.compile:
            raise UsageError("--offload and --compile are for genkit train lora: leave them out")
