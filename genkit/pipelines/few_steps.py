"""LoRAs that were distilled for few steps: what they ask of a run, and the one beside a model (``--fast``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted, explain
from genkit.lora.facts import Sampling
from genkit.lora.files import NAMED, Lora, lora_file
from genkit.models.check import FAST
from genkit.pipelines.tasks.streaming.settings import typed_arguments
from genkit.pipelines.trained_attention import facts_of
from genkit.reading.files import place

if TYPE_CHECKING:
    from genkit.pipelines.model import Model

#: Samplers of the first order, the only ones that distilled steps are for.
SAMPLERS = ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler")


@dataclass(frozen=True)
class FewSteps:
    """How a run goes under a distilled LoRA.

    Args:
        sampling: what its file says.
        name: of the file, for messages.
        folder: where it lies, with what belongs to it.
    """

    sampling: Sampling
    name: str
    folder: Path = Path()

    @property
    def values(self) -> dict[str, Any]:
        """Settings of the run, where the user leaves them open."""
        return {"steps": self.sampling.steps, "guidance_scale": self.sampling.guidance_scale}

    def notes(self, given: Any) -> list[str]:
        """What the user should know, one line each."""
        sampling = self.sampling
        guided = "without guidance" if sampling.guidance_scale == 1 else f"at guidance {sampling.guidance_scale:g}"
        lines = [f"{self.name} is made for {counted(sampling.steps, 'step')} {guided}, sampled by {sampling.scheduler}"]
        for name, value in self.values.items():
            asked = getattr(given, name, None)
            if asked is not None and asked != value:
                lines.append(f"--{name.replace('_', '-')} {asked:g} is not what {self.name} was made for ({value:g})")
        if sampling.stream and not getattr(given, "stream", False):
            lines.append(f"{self.name} is made for streams, chunk by chunk over a cache: add --stream")
        return lines

    def streamed(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The settings of a stream, what the user gives before what the file says; and what was taken, one line each.

        Args:
            given: of ``--stream-args``, typed. Another ``context`` than the file's takes nothing from it.
        """
        own = self.sampling.stream
        if not own or given.get("context", own.get("context")) != own.get("context"):
            return dict(given), []
        told = typed_arguments(own)
        if "state" in told and "state" not in given:
            path = self.folder / Path(told["state"]).name
            if not path.is_file():
                raise ArtifactError(
                    f"{self.name} was trained with a state of what left the window, {place(path.name)}, which is not "
                    "beside it; put it there, or give it with --stream-args state=FILE"
                )
            told["state"] = str(path)
        taken = ", ".join(f"{name}={value}" for name, value in told.items() if name not in given)
        lines = [f"stream of {self.name}: {taken}"] if taken else []
        other = [name for name, value in given.items() if name in told and told[name] != value]
        if other:
            lines.append(f"--stream-args {', '.join(other)}: not what {self.name} was made for")
        return {**told, **given}, lines

    def arguments(self, model: Model) -> dict[str, Any]:
        """Arguments of the pipeline's call: no noise is added on the way."""
        return {"eta": 0.0} if "eta" in model.accepted else {}

    def apply(self, pipeline: Any, flow_shift: float | None) -> None:
        """Give a pipeline the sampler.

        Args:
            pipeline: changed in place.
            flow_shift: what the user asks for; None for the file's.
        """
        import diffusers

        config = pipeline.scheduler.config
        if self.sampling.scheduler == SAMPLERS[0]:
            shift = flow_shift or self.sampling.flow_shift or 1.0
            pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
            return
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(
            config, timestep_spacing="trailing", set_alpha_to_one=True
        )


def few_steps_of(loras: Sequence[Lora]) -> FewSteps | None:
    """What distilled LoRAs among those given ask of the run; None without any.

    Raises:
        UsageError: two that ask for different things, or a sampler that genkit does not know.
    """
    found: FewSteps | None = None
    for lora in loras:
        facts = facts_of(lora)
        if facts is None or facts.sampling is None:
            continue
        name = place(lora.path.name)
        if facts.sampling.scheduler not in SAMPLERS:
            raise UsageError(explain(f"scheduler that {name} is made for", facts.sampling.scheduler, SAMPLERS))
        if found is not None and found.sampling != facts.sampling:
            raise UsageError(
                f"{found.name} is made for {counted(found.sampling.steps, 'step')} and {name} for "
                f"{facts.sampling.steps}; "
                "give one of them"
            )
        found = FewSteps(facts.sampling, name, lora.path.parent)
    return found


def fast_file(folder: Path) -> Path:
    """Where a model's folder has its few-step LoRA."""
    return folder / FAST / NAMED


def fast_lora(model: Model) -> Lora:
    """The few-step LoRA in a model's folder.

    Raises:
        UnsupportedError: it has none.
    """
    path = fast_file(model.folder)
    if not path.is_file():
        raise UnsupportedError(
            f"--fast: {model.name} has no few-step LoRA ({FAST}/{NAMED} in its folder); genkit train distill makes one"
        )
    return Lora(lora_file(path))
