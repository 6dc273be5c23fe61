"""What ``genkit train distill`` takes: one schema for flags and file. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Any

from genkit.errors import UsageError, explain
from genkit.pipelines.request import NEVER, WHEN_GIVEN, Settings, flag, option
from genkit.pipelines.settings import AUTO, DTYPE_CHOICES, MODEL, as_dtype
from genkit.pipelines.tasks.streaming.settings import typed_arguments
from genkit.pipelines.text import as_pairs
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
#: Kinds of students: several of the teacher's steps at once; dense answers under sparse attention (CLEAR); samples as
#: likely as the teacher's in few steps (TDM); the teacher's clip chunk by chunk over a cache (CausVid's start); streams
#: of the student's own as likely as the teacher's clips (Self-Forcing).
STEPS, FEATURES, TDM, CAUSAL, FORCING = "steps", "features", "tdm", "causal", "self-forcing"
KINDS = (STEPS, FEATURES, TDM, CAUSAL, FORCING)
#: Kinds that answer chunk by chunk, as a stream over a cache is made.
CHUNKED = (CAUSAL, FORCING)
#: Kinds that learn the scores of what the student makes, beside it.
MATCHED = (TDM, FORCING)
_GROUP = "What is trained"
_STEPS = 6
_STUDENT = "Teacher and student"
_ONLY_FEATURES, _ONLY_TDM, _STREAMED = "Kind features", "Kinds tdm and self-forcing", "Kinds causal and self-forcing"


@dataclass(frozen=True)
class StudentSettings(Settings):
    """What is distilled, from which prompts, and into what."""

    model: str = option("", MODEL, group=_GROUP)
    parts_from: str | None = option(
        None, "For a whole model in one file as --model: Diffusers folder or hub id of a model of its kind, with the "
        "configurations and what the file does not hold.", group=_GROUP, stored=WHEN_GIVEN,
    )  # fmt: skip
    kind: str = option(
        STEPS, "What the student learns: steps (several of the teacher's steps at once), features (to answer under "
        "--attention as the dense model does, CLEAR), tdm (few steps whose samples are as likely as the teacher's), "
        "causal (to make a stream: the teacher's clip chunk by chunk, over a cache of clean ones) or self-forcing "
        "(streams of its own that are as likely as the teacher's clips).",
        group=_GROUP, rule=Rule(choices=KINDS),
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
    steps: int | None = option(
        None, "Denoising steps of the student, 6 when left out; with features those of the model's samples, its own "
        "when left out.", group=_STUDENT, rule=Rule(low=1, high=1000),
    )  # fmt: skip
    substeps: int = option(
        3, "Kinds steps, causal and self-forcing (reflow): steps of the teacher in each of the student's: more are "
        "closer to the model's own path and slower.", group=_STUDENT, rule=Rule(low=1, high=100),
    )  # fmt: skip
    guidance_scale: float | None = option(
        None, "Guidance of the teacher, which a few-step student learns to do without; the model's own when left out.",
        group=_STUDENT, rule=Rule(low=0, high=1000),
    )  # fmt: skip
    negative_prompt: str = option("", "What the teacher is guided away from.", group=_STUDENT, prose=True)
    own_path: float = option(
        0.5, "Kind steps: share of samples that go on from where the student's step led, the others from the "
        "teacher's: the student meets, and learns to mend, its own errors.", group=_STUDENT, rule=Rule(low=0, high=1),
    )  # fmt: skip
    teacher_lora: str | None = option(
        None, "Kinds steps and causal: LoRA in the teacher. A few-step one is asked without guidance: with --substeps "
        "1 or 2 a student learns from it at a fraction of the model's own calls.", group=_STUDENT, stored=WHEN_GIVEN,
    )  # fmt: skip
    height: int | None = option(None, "Pixels; the model's own when left out.", group=_STUDENT)
    width: int | None = option(None, "Pixels; the model's own when left out.", group=_STUDENT)
    num_frames: int | None = option(None, "Frames of a clip; the model's own when left out.", group=_STUDENT)
    max_sequence_length: int | None = option(
        None, "Text tokens of a prompt; the model's own when left out.", group=_STUDENT, rule=Rule(low=1, high=100_000)
    )


#: What ``--stream-args`` takes of a stream over a cache.
STREAM_ARGUMENTS = ("chunk", "sink", "recent", "trained", "keep", "renoise", "state")


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """What a sparse student learns of its dense teacher."""

    num_samples: int = option(
        200, "Samples that the model makes first, to learn on, kept in OUTPUT/cache; published 10,000.",
        group=_ONLY_FEATURES, rule=Rule(low=1, high=10_000_000),
    )  # fmt: skip
    answer_weight: float = option(
        0.5, "Weight of the distance to the teacher's answer; that to the samples counts 1.", group=_ONLY_FEATURES,
        rule=Rule(low=0, high=1e6),
    )  # fmt: skip
    feature_weight: float = option(
        0.5, "Weight of the distance of attention outputs.", group=_ONLY_FEATURES, rule=Rule(low=0, high=1e6)
    )
    feature_every: int = option(
        4, "Compare the attention outputs of every so many layers, single-stream blocks where there are any.",
        group=_ONLY_FEATURES, rule=Rule(low=1, high=10_000),
    )  # fmt: skip
    caption_dropout: float = option(
        0.1, "Share of samples whose prompt is replaced by the negative one, so that guidance keeps working.",
        group=_ONLY_FEATURES, rule=Rule(low=0, high=1),
    )  # fmt: skip


@dataclass(frozen=True)
class TdmSettings(Settings):
    """How the likelihood of a student's samples is matched."""

    fake_learning_rate: float | None = option(
        None, "Of the adapter that learns the scores of the student's samples; five times --learning-rate when left "
        "out.", group=_ONLY_TDM, rule=Rule(low=1e-30, high=100),
    )  # fmt: skip
    fake_updates: int = option(
        1, "Updates of that adapter for each of the student; all are steps of --max-train-steps.", group=_ONLY_TDM,
        rule=Rule(low=1, high=100),
    )  # fmt: skip
    fake_attention: bool = option(
        False, "Kind tdm: put --attention into that model, too, as the published script does: one model more in "
        "memory.", group=_ONLY_TDM,
    )  # fmt: skip
    renoise: float = option(
        0.9, "Kind tdm: share of its own noise that the end of a step keeps in training; the rest is fresh.",
        group=_ONLY_TDM, rule=Rule(low=0, high=1),
    )  # fmt: skip
    regularization: float = option(
        0.0, "Weight of the distance of those scores to the teacher's without guidance; published 0 (Wan) and 0.5 "
        "(CogVideoX).", group=_ONLY_TDM, rule=Rule(low=0, high=1e6),
    )  # fmt: skip


@dataclass(frozen=True)
class StreamedSettings(Settings):
    """How a student makes a stream."""

    stream_args: dict[str, Any] = option(
        dict, "Settings of the stream that is learned: key=value,key=value; keys are "
        f"{', '.join(STREAM_ARGUMENTS)}. The file keeps them for genkit generate --stream.",
        group=_STREAMED, parse=as_pairs,
    )  # fmt: skip
    chunks: int | None = option(
        None, "Kind self-forcing: chunks of the longest roll-out, of which the last clip is judged; those of a clip "
        "when left out.", group=_STREAMED, rule=Rule(low=1, high=10_000),
    )  # fmt: skip
    reflow_weight: float = option(
        0.0, "Kind self-forcing: weight of the distance to the teacher's own clip from the same noise, where the first "
        "step is trained; published 0.05 in the second stage.", group=_STREAMED, rule=Rule(low=0, high=1e6),
    )  # fmt: skip


#: Settings that belong to some kinds alone.
_BELONG = {
    "substeps": (STEPS, CAUSAL, FORCING),
    "own_path": (STEPS,),
    "teacher_lora": (STEPS, CAUSAL),
    "stream_args": CHUNKED,
    **dict.fromkeys(("chunks", "reflow_weight"), (FORCING,)),
    **dict.fromkeys(FeatureSettings.__annotations__, (FEATURES,)),
    **dict.fromkeys(TdmSettings.__annotations__, MATCHED),
    **dict.fromkeys(("fake_attention", "renoise"), (TDM,)),
}


@dataclass(frozen=True)
class DistillSettings(
    CheckpointSettings, MethodWeightsSettings, OptimizationSettings, AdapterSettings, StreamedSettings, TdmSettings,
    FeatureSettings, StudentSettings,
):  # fmt: skip
    """Everything that decides what ``genkit train distill`` makes. The last group comes first in ``--help``."""

    def check(self) -> None:
        """Rules between settings; what depends on the model is checked when the run is opened."""
        super().check()
        for name, example in (("model", "toy-video"), ("prompts", WORLD), ("output", "runs/fast")):
            if not getattr(self, name):
                raise UsageError(f"distillation needs {flag(name)}, for instance {flag(name)} {example}")
        for name, kinds in _BELONG.items():
            if self.kind not in kinds and getattr(self, name) != _default(name):
                raise UsageError(
                    f"{flag(name)} has no effect with --kind {self.kind}: it belongs to {' and '.join(kinds)}"
                )
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
        if self.offload != "none" or self.compile:
            raise UsageError("--offload and --compile are for genkit train lora: leave them out")
        self._check_attention()

    def _check_attention(self) -> None:
        has = (self.attention not in (None, "none")) or self.recipe is not None
        if self.kind == FEATURES and not has:
            raise UsageError(
                "--kind features teaches a model to answer under sparse attention as it does without: give --attention "
                "METHOD (clear, neighborhood, ...) or --recipe NAME"
            )
        self._check_streamed(has)
        if self.train_attention_weights and not has:
            raise UsageError("--train-attention-weights needs --attention or --recipe with a method that has weights")
        if self.fake_attention and not has:
            raise UsageError("--fake-attention needs --attention or --recipe")

    def _check_streamed(self, has: bool) -> None:
        """A student that answers chunk by chunk has the stream as its attention."""
        if self.kind not in CHUNKED:
            return
        if has:
            raise UsageError(
                f"--kind {self.kind} learns a stream over a cache, which works on the same layers as --attention and "
                "--recipe; leave them out (--stream-args keep=0.2 reads a share of the blocks)"
            )
        if self.gradient_checkpointing:
            raise UsageError(
                f"--gradient-checkpointing computes layers again when the cache of --kind {self.kind} holds other "
                "frames; leave it out and take a smaller --train-batch-size"
            )
        typed_arguments(self.stream_args, STREAM_ARGUMENTS)

    @property
    def student_steps(self) -> int:
        """Denoising steps of a few-step student."""
        return _STEPS if self.steps is None else self.steps


def _default(name: str) -> Any:
    """What a setting is when it is left out."""
    told = DistillSettings.__dataclass_fields__[name]
    return told.default if told.default_factory is MISSING else told.default_factory()
