"""Another sampler for a model: found by name, made for the model's noise and settings, checked before weights."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError, explain, said
from genkit.pipelines.text import parse_pairs
from genkit.schema import number

if TYPE_CHECKING:
    from genkit.pipelines.model import Model

SUFFIX = "Scheduler"
#: Samplers of models that are trained on flows.
FLOWS = (
    "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "UniPCMultistep", "DPMSolverMultistep",
    "DPMSolverSinglestep", "DEISMultistep", "SASolver",
)  # fmt: skip
#: Samplers of models with a table of betas.
BETAS = (
    "DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep",
    "UniPCMultistep", "SASolver", "LCM", "TCD",
)  # fmt: skip
#: Samplers that are made for one kind of noise of their own.
_OWN = {"CogVideoXDDIM": ("CogVideoXDPM",), "CogVideoXDPM": ("CogVideoXDDIM",)}
#: What makes the noise of a model, beside the values by which a scheduler has none of it.
_NOISE = {"snr_shift_scale": (None, 1.0), "rescale_betas_zero_snr": (None, False), "trained_betas": (None,)}


@dataclass(frozen=True)
class Sampler:
    """A scheduler by its class and what is changed of the model's configuration.

    Args:
        name: of the class in Diffusers.
        changes: settings of it, those that the user wrote and those that the model's noise asks for.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)

    def of(self, config: dict[str, Any]) -> Any:
        """The scheduler of a model with this scheduler configuration."""
        import diffusers

        from genkit.pipelines.clean_end import ends_clean

        return ends_clean(getattr(diffusers, self.name).from_config(config, **self.changes))


def find_sampler(text: str, model: Model, flow_shift: float | None, steps: int | None) -> Sampler:
    """The sampler that a text names, fitted to a model.

    Args:
        text: ``NAME`` or ``NAME:setting=value,setting=value``; the name of a class of Diffusers, with or without its
            ending and in any case.
        model: whose configuration it takes over.
        flow_shift: timestep shift that the user asked for.
        steps: of the run; None when only the pipeline knows.

    Raises:
        UsageError: an unknown name or setting, or one that does not fit the model's noise.
        UnsupportedError: a scheduler whose library is missing here.
    """
    name, _, rest = text.partition(":")
    config = model.config("scheduler")
    own = str(config.get("_class_name", ""))
    flow = model.flow
    known = (*dict.fromkeys((own.removesuffix(SUFFIX), *_usual(own, flow))),)
    wanted = {each.lower(): each for each in known}.get(name.strip().removesuffix(SUFFIX).lower())
    if wanted is None:
        raise UsageError(_refusal(name.strip(), known, flow, model))
    kind = _class(f"{wanted}{SUFFIX}")
    parameters = inspect.signature(kind.__init__).parameters
    _check_noise(kind, parameters, config, model)
    changes = _fitting(parameters, config, flow, flow_shift) | _written(rest, kind, parameters)
    sampler = Sampler(kind.__name__, changes)
    _check_run(sampler, config, steps)
    return sampler


def _usual(own: str, flow: bool) -> tuple[str, ...]:
    return _OWN.get(own.removesuffix(SUFFIX), FLOWS if flow else BETAS)


def _refusal(name: str, known: tuple[str, ...], flow: bool, model: Model) -> str:
    other = {each.lower() for each in (BETAS if flow else FLOWS)}
    if name.removesuffix(SUFFIX).lower() in other:
        kinds = ("a table of betas", "flows") if flow else ("flows", "a table of betas")
        return (
            f"--scheduler {name} is for models trained on {kinds[0]}, and {model.name} is trained on {kinds[1]}; "
            f"allowed: {', '.join(known)}"
        )
    return explain("--scheduler", name, known)


@cache
def _class(name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name)
    missing = getattr(kind, "_backends", None)
    if missing is not None:
        raise UnsupportedError(
            f"--scheduler {name} needs {', '.join(missing)} beside Diffusers, which is not installed"
        )
    return kind


def _check_noise(kind: Any, parameters: Any, config: dict[str, Any], model: Model) -> None:
    """Refuse a scheduler that would make other noise than the model knows, or that its pipeline cannot drive."""
    for name, without in _NOISE.items():
        if config.get(name) not in without and name not in parameters:
            raise UsageError(f"--scheduler: {kind.__name__} has no {name}, which the noise of {model.name} is made by")
    told = inspect.signature(kind.set_timesteps).parameters
    needs = {"mu": bool(config.get("use_dynamic_shifting")), "sigmas": _gives_sigmas(model.pipeline_class)}
    for name, needed in needs.items():
        if needed and name not in told:
            raise UsageError(
                f"--scheduler: {model.class_name} hands its scheduler {name}, which {kind.__name__} does not take; try "
                "FlowMatchEulerDiscrete or UniPCMultistep"
            )


@cache
def _gives_sigmas(pipeline_class: type) -> bool:
    """Whether a pipeline makes its own list of noise levels."""
    source = inspect.getsource(pipeline_class.__call__)
    return "sigmas=sigmas" in source.replace(" ", "") and "np.linspace" in source


def _fitting(parameters: Any, config: dict[str, Any], flow: bool, flow_shift: float | None) -> dict[str, Any]:
    """Settings that make a scheduler one of flows, with the model's shift under its own name."""
    if not flow:
        return {}
    shift = flow_shift or config.get("flow_shift") or config.get("shift") or 1.0
    found: dict[str, Any] = {"shift": shift} if "shift" in parameters else {}
    if "use_flow_sigmas" in parameters:
        found |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return found


def _written(text: str, kind: Any, parameters: Any) -> dict[str, Any]:
    """What the user wrote behind the name."""
    found = {}
    for name, value in (parse_pairs(text, "--scheduler") if text else {}).items():
        if name not in parameters or name == "self":
            allowed = [each for each in parameters if each not in ("self", "kwargs")]
            raise UsageError(explain(f"--scheduler {kind.__name__}", name, allowed))
        found[name] = _valued(value, parameters[name].default, f"--scheduler {kind.__name__}: {name}")
    return found


def _valued(text: str, default: Any, what: str) -> Any:
    """A setting from its text, of the type of its default."""
    if isinstance(default, bool) or text.lower() in ("true", "false"):
        if text.lower() not in ("true", "false") or not isinstance(default, bool | None):
            raise UsageError(
                explain(what, text, "true or false" if isinstance(default, bool) else "a value of its type")
            )
        return text.lower() == "true"
    if isinstance(default, int | float):
        return number(text, type(default), what)
    if isinstance(default, str):
        return text
    try:
        return number(text, float, what)
    except UsageError:
        return text


def _check_run(sampler: Sampler, config: dict[str, Any], steps: int | None) -> None:
    """Make it and lay out its steps: what it refuses is told now."""
    mu = {"mu": 1.0} if config.get("use_dynamic_shifting") else {}
    try:
        made = sampler.of(config)
        if steps is not None:
            made.set_timesteps(steps, **mu)
    except Exception as error:  # whatever a class says about values that it was not made for
        raise UsageError(f"--scheduler {sampler.name}: {said(error)}") from error
