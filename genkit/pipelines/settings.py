"""Groups of settings that commands share, and what ``genkit generate`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import fields as fields_of
from fractions import Fraction
from typing import Any, ClassVar

from genkit.errors import UsageError, explain
from genkit.models.registry import DEFAULT_MODEL
from genkit.pipelines.instruction.settings import InstructionSettings
from genkit.pipelines.quantise import QUANTISED
from genkit.pipelines.request import NEVER, WHEN_GIVEN, Settings, option
from genkit.pipelines.tasks.audio_video.settings import AudioVideoSettings
from genkit.pipelines.tasks.boxes.settings import BoxSettings
from genkit.pipelines.tasks.high_resolution.settings import HighResolutionSettings
from genkit.pipelines.tasks.inputs.settings import GivenSettings
from genkit.pipelines.tasks.longer.settings import LongerSettings
from genkit.pipelines.tasks.references.settings import ReferenceSettings
from genkit.pipelines.tasks.storyboard.settings import StoryboardSettings
from genkit.pipelines.tasks.streaming.settings import StreamSettings
from genkit.pipelines.text import as_factors, as_pairs, as_pairs_text, as_texts, shares
from genkit.reading import rate
from genkit.schema import Rule

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
DTYPE_CHOICES = ("auto", "float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "sequential", "group")
NONE = "none"
#: Value of ``attention``: as the LoRA file says it was trained.
AUTO = "auto"
#: Largest number that a container's clock counts with.
CLOCK = 2**31 - 1
#: Slowest and fastest frame rates that every container can hold.
LOWEST_FPS, HIGHEST_FPS = Fraction(1, 100), Fraction(1000)


def as_dtype(value: Any, what: str) -> Any:
    """The whole name of a type that was written short, such as ``bf16``."""
    return DTYPES.get(value, value) if isinstance(value, str) else value


def as_rate(value: Any, what: str) -> Any:
    """A frame rate as the text it was written as."""
    # A float stands for the digits it was written with, not for its binary fraction.
    found = rate(str(value) if isinstance(value, float) else value, what, LOWEST_FPS, HIGHEST_FPS)
    if max(found.numerator, found.denominator) > CLOCK:
        raise UsageError(explain(what, value, "a rate with fewer digits, such as 23.976 or 30000/1001"))
    return str(value)


#: What a model can be, for ``--help``.
MODEL = (
    "Shipped name, local Diffusers folder, hub id owner/name[@revision], or a whole model in one file (.safetensors)."
)


@dataclass(frozen=True)
class InputSettings(Settings):
    """The file that a command works on; on the command line it is the argument."""

    image: str | None = option(None, "Picture or clip to work on; its size is kept.", group="Input")


@dataclass(frozen=True)
class PromptSettings(Settings):
    """What is asked for, and of which model. A None means "what suits the model" (its ``genkit.json``, else the
    pipeline's own default) and is replaced by the value used before settings are stored."""

    prompt: str | None = option(
        None, "What to show. An empty text is allowed: the model then runs unconditionally.", prose=True
    )
    negative_prompt: str | None = option(None, "What to avoid; needs a guidance scale above 1.", prose=True)
    model: str = option(DEFAULT_MODEL, MODEL)
    steps: int | None = option(None, "Denoising steps.", rule=Rule(low=1, high=1_000_000))
    guidance_scale: float | None = option(
        None, "How strongly the prompt rules; 1 switches guidance off.", rule=Rule(low=0, high=10_000)
    )


@dataclass(frozen=True)
class WordSettings(PromptSettings):
    """How weights act that are written into a prompt: ``(word:1.3)``."""

    #: Role of the rows that they act on, of commands that run several at once; None = all.
    weighed_role: ClassVar[str | None] = None

    word_form: str = option(
        "renormalised", "How weights such as (red:1.3) in a prompt act: renormalised, multiplicative or additive.",
        group="Words", rule=Rule(choices=("renormalised", "multiplicative", "additive")), stored=WHEN_GIVEN,
    )  # fmt: skip
    word_steps: str | None = option(
        None, "Share of the steps in which they act: 0:0.5 for the first half.", group="Words", stored=WHEN_GIVEN
    )
    word_frames: str | None = option(
        None, "Share of a clip in which they act: 0.5:1 for the second half; of one word by (word:0@0.5-1).",
        group="Words", stored=WHEN_GIVEN,
    )  # fmt: skip
    word_eos: bool = option(
        False, "Weigh the token that ends the prompt too, where CLIP keeps a summary.", group="Words",
        stored=WHEN_GIVEN,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        for name in ("word_steps", "word_frames"):
            shares(getattr(self, name), f"--{name.replace('_', '-')}")


@dataclass(frozen=True)
class SizeSettings(Settings):
    """The size of what is made from a text alone."""

    height: int | None = option(None, "Height in pixels.", rule=Rule(low=1, high=65_536))
    width: int | None = option(None, "Width in pixels.", rule=Rule(low=1, high=65_536))
    num_frames: int | None = option(None, "Frames of a video.", rule=Rule(low=1, high=1_000_000))
    fps: str | None = option(None, "Frames per second of the file, kept exactly: 8, 23.976, 30000/1001.", parse=as_rate)


@dataclass(frozen=True)
class ReadSettings(Settings):
    """How the model reads and samples."""

    max_sequence_length: int | None = option(None, "Text tokens the model reads.", rule=Rule(low=1, high=1_000_000))
    truncate_prompt: bool = option(False, "Cut a prompt that is too long instead of refusing it.", one_way=True)
    flow_shift: float | None = option(
        None, "Timestep shift of a flow scheduler: larger spends more steps on strong noise. The model's own when left "
        "out.", rule=Rule(low=0.01, high=100), stored=WHEN_GIVEN,
    )  # fmt: skip


@dataclass(frozen=True)
class DrawSettings(ReadSettings):
    """Random numbers and how many outputs, and how the model reads and samples."""

    seed: int | None = option(
        None,
        "Start of the random numbers; drawn and printed when not given.",
        rule=Rule(low=0, high=2**63 - 1, says="0 to 2^63 - 1"),
    )
    num_videos: int = option(
        1, "Outputs per prompt, with seeds seed, seed+1, ...", rule=Rule(low=1, high=10_000)
    )  # fmt: skip


@dataclass(frozen=True)
class GenerationSettings(DrawSettings, SizeSettings, PromptSettings):
    """What a pipeline that starts from a text is called with."""


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """Which attention method runs, and where."""

    attention: str | None = option(
        None,
        "Attention method by name (see genkit methods); 'none' for the model's own, 'auto' for what --lora was "
        "trained through.",
        group="Attention",
    )
    attention_args: dict[str, Any] = option(
        dict, "Settings of the method: key=value,key=value.", group="Attention", parse=as_pairs, belongs="attention"
    )
    schedule: str | None = option(
        None, "Where it applies: steps=10:-2,layers=1: (also branches=, heads=), or recommended.", group="Attention",
        parse=as_pairs_text,
    )  # fmt: skip
    backend: str = option("auto", "Who executes the method: auto, or a name from genkit doctor.", group="Attention")
    recipe: str | None = option(
        None, "Recipe by name or YAML file, instead of --attention.", group="Attention", belongs="attention"
    )
    check_first: bool = option(
        False, "Compare every patched layer with dense attention on a few queries at its first step, and warn of those "
        "that are far off.", group="Attention", one_way=True, stored=NEVER,
    )  # fmt: skip
    check_limit: float | None = option(
        None, "The same, and stop when a layer's relative error is larger than this: 0.3.", group="Attention",
        rule=Rule(low=0.0001, high=1000), stored=NEVER,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.attention is not None and self.recipe is not None:
            raise UsageError("--attention and --recipe exclude each other: a recipe names its methods itself")
        if self.attention is None and self.attention_args:
            raise UsageError("--attention-args needs --attention NAME; see genkit methods")
        if self.attention is None and self.recipe is None:
            for flag, given in (
                ("--schedule", self.schedule is not None),
                ("--backend", self.backend != "auto"),
                ("--check", self.check_first),
                ("--check-limit", self.check_limit is not None),
            ):
                if given:
                    raise UsageError(f"{flag} needs --attention NAME or --recipe FILE")

    def check_free(self, who: str, do: str = "") -> None:
        """Refuse a method of attention on layers that somebody else controls; with a schedule the layers may differ:
        :meth:`genkit.pipelines.attention.Attention.check_beside` looks.

        Args:
            who: the other one. do: how to be without it.

        Raises:
            UsageError: a method without a schedule.
        """
        if self.attention is not None and self.schedule is None:
            raise UsageError(f"--attention {self.attention}: {who} works on the same layers; leave --attention out{do}")

    @classmethod
    def merge(cls, before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Naming ``attention`` replaces an earlier recipe and what belonged to the earlier method (and the other way
        round); ``attention: none`` removes them together with the schedule."""
        if "attention" in given or "recipe" in given:
            fields = fields_of(cls)  # without class variables, which are no settings
            dropped = ["attention", *(field.name for field in fields if field.metadata["belongs"] == "attention")]
            dropped += ["schedule", "backend"] if given.get("attention") == NONE else []
            if given.get("attention") != before.get("attention") or "recipe" in given:
                before = {key: value for key, value in before.items() if key not in dropped}
        if given.get("attention") == NONE:
            given = {key: value for key, value in given.items() if key not in ("attention", "attention_args")}
        return super().merge(before, given)


@dataclass(frozen=True)
class LoadSettings(Settings):
    """How a model is loaded."""

    lora: tuple[str, ...] = option(
        (), "LoRA file or folder, with @0.8 for its strength and :transformer_2 for one expert. Repeatable.",
        group="Model", parse=as_texts,
    )  # fmt: skip
    lora_router: str | None = option(
        None, "Router trained over several LoRAs (genkit train lora --mix): it chooses one token by token. Its LoRAs "
        "are found by themselves, or named by --lora; others of --lora act everywhere.", group="Model",
        stored=WHEN_GIVEN,
    )  # fmt: skip
    lora_mask: tuple[str, ...] = option(
        (), "Picture that is white where a LoRA acts, one for each --lora in order. Repeatable.", group="Model",
        parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip
    lora_layers: tuple[str, ...] = option(
        (), "Factors of a LoRA's strength by layer: blocks.1=0.5,attn2=0 (whole names). The first belongs to the first "
        "--lora and so on; one alone to all. Repeatable.", group="Model", parse=as_factors, stored=WHEN_GIVEN,
    )  # fmt: skip
    lora_steps: tuple[str, ...] = option(
        (), "Steps in which a LoRA acts: 0:10, or with factors 0:10=1,10:=0.3. The first belongs to the first --lora "
        "and so on; one alone to all. Repeatable.", group="Model", parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip
    lora_partial: bool = option(
        False,
        "Load what fits of a LoRA file that fits this model in part.",
        group="Model",
        one_way=True,
        stored=WHEN_GIVEN,
    )
    dtype: str = option(
        "auto", "auto, float32, bfloat16 or float16 (fp32, bf16, fp16).", group="Model", parse=as_dtype,
        rule=Rule(choices=DTYPE_CHOICES),
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, ...", group="Model")
    offload: str = option(
        "none", "none, model, group or sequential: keep parts in main memory until needed.", group="Model",
        rule=Rule(choices=OFFLOADS),
    )  # fmt: skip
    parts_from: str | None = option(
        None, "For a whole model in one file as --model: Diffusers folder or hub id of a model of its kind, with the "
        "configurations and what the file does not hold.", group="Model", stored=WHEN_GIVEN,
    )  # fmt: skip
    denoiser: tuple[str, ...] = option(
        (), "Denoiser's weights in one file (.safetensors, .gguf, names of ComfyUI too), in place of the model's own; "
        "PART=FILE for one of several. Repeatable.", group="Model", parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip
    quantize: str | None = option(
        None, "Keep the denoiser's weights in fewer bits: fp8 (anywhere), int8, nf4 (bitsandbytes, NVIDIA GPU), gguf "
        "with --denoiser FILE.gguf; int8:NAME and fp8:NAME say by what (bitsandbytes, torchao, quanto).",
        group="Model", rule=Rule(choices=QUANTISED), stored=WHEN_GIVEN,
    )  # fmt: skip
    vae_tiling: bool = option(False, "Decode in tiles: less memory, slower, faint seams possible.", group="Model")
    vae_slicing: bool = option(False, "Decode one video of a batch at a time.", group="Model")


@dataclass(frozen=True)
class OutputSettings(Settings):
    """What is written."""

    enlarge: int = option(
        1, "Enlarge the written frames 2, 3, ... times (Lanczos): small clips keep their edges in .mp4.",
        group="Output", rule=Rule(low=1, high=8),
    )  # fmt: skip
    output: str | None = option(
        None, "File (.mp4 .gif .webp .png), pattern (shot-%04d.png) or folder of frames.", group="Output", stored=NEVER
    )


@dataclass(frozen=True)
class FastSettings(Settings):
    """Few steps."""

    fast: bool = option(
        False, "Few steps without guidance, by the LoRA that lies in the model's folder for it.", group="Model",
        one_way=True, stored=WHEN_GIVEN,
    )  # fmt: skip


@dataclass(frozen=True)
class SamplerSettings(Settings):
    """How the steps are made."""

    scheduler: str | None = option(
        None, "Sampler by its name in Diffusers, with settings: UniPCMultistep, "
        "DPMSolverMultistep:use_karras_sigmas=true. The model's own when left out.", stored=WHEN_GIVEN,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.scheduler is not None and getattr(self, "fast", False):
            raise UsageError("--scheduler and --fast exclude each other: few steps bring their own sampler")


@dataclass(frozen=True)
class GenerateSettings(
    OutputSettings,
    HighResolutionSettings,
    FastSettings,
    LoadSettings,
    AudioVideoSettings,
    BoxSettings,
    ReferenceSettings,
    AttentionSettings,
    StoryboardSettings,
    GivenSettings,
    StreamSettings,
    LongerSettings,
    InstructionSettings,
    SamplerSettings,
    WordSettings,
    GenerationSettings,
):
    """Everything that decides what ``genkit generate`` makes. The last group comes first in ``--help``."""
