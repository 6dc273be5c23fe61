"""Training a model of video and sound on all its tasks at once: what of a sample is made, given clean, or not there.

A task is drawn for every sample. What is given goes in clean, its tokens are told noise level 0, and it counts nothing
in the loss; a stream that is not there neither reads nor is read.

Sources: Klear (arXiv 2601.04151), random modality masking; Cross-Modal Context Learning (arXiv 2603.18600), routing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.attention.cross_modal_context import ContextRoute, CrossModalContext
from genkit.errors import UsageError, explain
from genkit.families.training.base import AUDIO, VIDEO, Joint, Tensors, Training
from genkit.families.training.lookup import trained_by_tasks
from genkit.patching import PatchHandle
from genkit.schema import number
from genkit.training.data.folder.told import listed

#: Route of calls outside of training, such as previews.
REST = "t2av"
#: Largest weight of a task; they are brought to sum 1.
LARGEST = 1e6


@dataclass(frozen=True)
class JointTask:
    """What one sample is trained to do.

    Args:
        says: in words.
        made: streams that are noised and count in the loss.
        given: streams that are there whole, clean.
        first: whether the first latent frame is given.
        beginning: whether the beginning of every stream is given, of random length.
        route: name of it for cross-modal context attention, see
            :data:`genkit.attention.cross_modal_context.route.TASKS`.
    """

    says: str
    made: tuple[str, ...] = (VIDEO, AUDIO)
    given: tuple[str, ...] = ()
    first: bool = False
    beginning: bool = False
    route: str = "t2av"

    @property
    def apart(self) -> bool:
        """Whether the stream that is made is alone."""
        return len(self.made) + len(self.given) == 1

    @property
    def needs_sound(self) -> bool:
        """Whether a clip without sound cannot be trained on."""
        return AUDIO in self.made + self.given

    @property
    def needs_time(self) -> bool:
        """Whether a single frame cannot be trained on."""
        return self.first or self.beginning


JOINT_TASKS = {
    "t2av": JointTask("text to video and sound"),
    "i2av": JointTask("first frame to video and sound", first=True, route="i2av"),
    "av2av": JointTask("continuation of video and sound", beginning=True),
    "t2v": JointTask("text to video", made=(VIDEO,), route="t2v"),
    "i2v": JointTask("first frame to video", made=(VIDEO,), first=True, route="i2v"),
    "t2a": JointTask("text to sound", made=(AUDIO,), route="t2a"),
    "a2v": JointTask("sound to video", made=(VIDEO,), given=(AUDIO,), route="a2v"),
    "v2a": JointTask("video to sound", made=(AUDIO,), given=(VIDEO,), route="v2a"),
}


def task_shares(told: Mapping[str, Any], what: str = "--tasks") -> dict[str, float]:
    """Weights of tasks as shares that sum to 1, those of weight 0 left out.

    Raises:
        UsageError: an unknown task, weights that are no numbers of 0 or more, or none above 0.
    """
    found = {}
    for name, value in told.items():
        if name not in JOINT_TASKS:
            raise UsageError(
                explain(f"task of {what}", name, [f"{key} ({task.says})" for key, task in JOINT_TASKS.items()])
            )
        weight = number(value, float, f"{what} {name}") if isinstance(value, str) else value
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= LARGEST:
            raise UsageError(explain(f"weight of {what} {name}", value, f"a number from 0 to {LARGEST:g}"))
        found[name] = float(weight)
    total = sum(found.values())
    if not total > 0:
        raise UsageError(explain(what, dict(told), "a weight above 0 for one task at least: t2av=0.6,a2v=0.2,v2a=0.2"))
    return {name: weight / total for name, weight in found.items() if weight}


@dataclass(frozen=True)
class Given:
    """The tasks of a batch.

    Args:
        names: one per sample.
        clean: stream -> bool (B, L), latent frames or sound tokens that are given.
        counts: stream -> (B, 1, L, ...) weights of the loss that broadcast to its latents.
        apart: whether the streams are kept apart in this batch.
    """

    names: tuple[str, ...]
    clean: Tensors
    counts: Tensors
    apart: bool


class JointDraw:
    """Draws tasks, and says what of a batch they give.

    Whether the streams of a batch are apart is drawn for all of it, and for all processes, with the chance of the tasks
    that keep them apart: a model takes both kinds in calls of their own, and processes must call it equally often. Then
    every sample draws among the tasks of that kind. Each task keeps its share.

    Args:
        shares: from :func:`task_shares`.
        joint: the family's record.
        cross_levels: see :attr:`genkit.families.training.base.Call.cross_levels`.
        route: told the tasks of every batch, for attention that routes by them; the model then keeps its streams
            together, and the attention keeps apart what a task leaves out. None without.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        joint: Joint,
        cross_levels: bool | None = None,
        route: Callable[[Sequence[str]], None] | None = None,
    ):
        self.shares, self.joint, self.cross_levels, self.route = dict(shares), joint, cross_levels, route

    @property
    def apart(self) -> float:
        """Share of the tasks that keep the streams apart."""
        return sum(share for name, share in self.shares.items() if JOINT_TASKS[name].apart)

    def draw(self, shared: torch.Generator, own: Sequence[torch.Generator]) -> tuple[str, ...]:
        """A task for every sample.

        Args:
            shared: the same for every sample and process. own: one per sample.
        """
        apart = float(torch.rand((), generator=shared)) < self.apart
        names = [name for name in self.shares if JOINT_TASKS[name].apart == apart] or list(self.shares)
        weights = torch.tensor([self.shares[name] for name in names], dtype=torch.float64)
        return tuple(names[int(torch.multinomial(weights, 1, generator=each))] for each in own)

    def given(
        self, names: Sequence[str], latents: Tensors, pipeline: Any, fps: float | None, own: Sequence[torch.Generator]
    ) -> Given:
        """What tasks give of a batch.

        Args:
            names: of the tasks.
            latents: stream -> (B, C, T, h, w) of video, (B, C, L, bins) of sound.
            pipeline, fps: for the family's record.
            own: a generator per sample, for the length of what is continued.
        """
        tasks = [JOINT_TASKS[name] for name in names]
        lengths = {stream: value.shape[2] for stream, value in latents.items()}
        frames = lengths[VIDEO]
        if frames == 1 and any(task.needs_time for task in tasks):
            raise UsageError("tasks that begin with a given frame need clips of two latent frames or more")
        clean = {stream: torch.zeros(len(names), length, dtype=torch.bool) for stream, length in lengths.items()}
        made = {stream: torch.zeros(len(names), length) for stream, length in lengths.items()}
        for row, (task, generator) in enumerate(zip(tasks, own, strict=True)):
            for stream in clean:
                clean[stream][row] = stream in task.given
                made[stream][row] = float(stream in task.made)
            if task.first:
                clean[VIDEO][row, 0] = True
            if task.beginning:
                kept = int(torch.randint(1, frames, (), generator=generator))
                clean[VIDEO][row, :kept] = True
                if AUDIO in clean:
                    clean[AUDIO][row, : self.joint.sound_of(pipeline, kept, fps, lengths[AUDIO])] = True
        counts = {stream: (made[stream] * ~clean[stream]).to(latents[stream].device) for stream in clean}
        return Given(
            tuple(names),
            {stream: value.to(latents[stream].device) for stream, value in clean.items()},
            {stream: _over(value, latents[stream]) for stream, value in counts.items()},
            apart=self.route is None and any(task.apart for task in tasks),
        )

    @contextmanager
    def routed(self, names: Sequence[str]) -> Iterator[None]:
        """Tell the attention what the samples of the next call do; afterwards it makes both halves of all again."""
        if self.route is None:
            yield
            return
        self.route([JOINT_TASKS[name].route for name in names])
        try:
            yield
        finally:
            self.route([REST])


def with_clean(noisy: Tensors, clean: Tensors, given: Given) -> Tensors:
    """Noisy latents whose given parts are the clean ones."""
    return {
        stream: torch.where(_over(given.clean[stream], value), clean[stream].to(value), value)
        for stream, value in noisy.items()
    }


def task_figures(names: Sequence[str], errors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Mean error of every task that was drawn, its streams together; errors (B,) by stream, on the CPU."""
    total = torch.stack(list(errors.values())).sum(0)
    rows = np.array(names)
    return {f"loss {name}": float(total[torch.from_numpy(rows == name)].mean()) for name in dict.fromkeys(names)}


def _over(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, L) as (B, 1, L, 1, ...) beside latents (B, C, L, ...)."""
    return value.view(len(value), 1, -1, *[1] * (like.ndim - 3))


def check_clips(shares: Mapping[str, float], silent: Sequence[str], single: Sequence[str]) -> None:
    """Refuse tasks that some samples cannot be trained on.

    Args:
        silent: names of clips without sound. single: names of samples of one frame.

    Raises:
        UsageError: naming the tasks and the samples.
    """
    for names, needs, lack, remedy in (
        (silent, "needs_sound", "sound", "--missing-audio silence gives them silence, t2v and i2v need none"),
        (single, "needs_time", "more than one frame", "give clips, or a larger --num-frames"),
    ):
        wanting = [name for name in shares if getattr(JOINT_TASKS[name], needs)]
        if names and wanting:
            raise UsageError(f"--tasks {', '.join(wanting)} need {lack}, which these lack: {listed(names)}; {remedy}")


def check_joint(told: Mapping[str, Any], training: Training, class_name: str) -> dict[str, float]:
    """The shares of ``--tasks`` for a model.

    Raises:
        UsageError: tasks or weights that mean nothing, or a model that is not trained by tasks.
    """
    shares = task_shares(told)
    if training.joint is None:
        able = ", ".join(trained_by_tasks())
        raise UsageError(
            f"--tasks: {class_name} is not trained by tasks; allowed: models of video and sound of class {able}; leave "
            "it out"
        )
    return shares


def joint_draw(
    shares: Mapping[str, float], training: Training, call: Mapping[str, Any], handle: PatchHandle | None
) -> JointDraw | None:
    """What draws the tasks of a run; None without tasks.

    Args:
        shares: from :func:`check_joint`, empty without tasks.
        training: the family's record.
        call: further arguments of the pipeline's call, as the model's ``genkit.json`` names them: training tells the
            layers between the streams the same levels as sampling does.
        handle: of the patched attention. Context tokens of ``cross_modal_context`` in it are routed by the tasks.
    """
    if not shares:
        return None
    assert training.joint is not None, "check_joint refuses it"
    route = None
    if handle is not None:
        routed = any(isinstance(method, CrossModalContext) and method.tokens for method in handle.methods)
        route = ContextRoute.of(handle.cache).set if routed else None
    return JointDraw(shares, training.joint, call.get("use_cross_timestep"), route)
