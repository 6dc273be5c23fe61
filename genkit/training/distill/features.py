"""The loss of kind ``features``: a student under sparse attention answers as its dense teacher does (CLEAR).

On samples that the model made itself, with noise of any level: the usual loss of the model, the squared distance to the
teacher's answer, and the mean squared distance of what chosen attention layers put out before their projection.
``L = L_flow + 0.5 L_answer + 0.5 L_attention`` as published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genkit.training.distill.outputs import Outputs
from genkit.training.distill.student import Parts, Student, Teaching
from genkit.training.lora.levels import LOWEST, Levels
from genkit.training.lora.made import MadeSamples

_PICK, _NOISE, _EMPTY = 10, 11, 12


@dataclass(frozen=True)
class FeatureLoss:
    """How the parts of the loss count.

    Args:
        answer: weight of the distance to the teacher's answer.
        attention: weight of the distance of attention outputs; 0 compares none.
        layers: paths of the attention modules that are compared.
        dropout: share of samples whose caption is emptied, so that guidance keeps working.
    """

    answer: float = 0.5
    attention: float = 0.5
    layers: tuple[str, ...] = ()
    dropout: float = 0.1


class FeaturesTask(Student):
    """A student that learns to answer under its attention method as the dense model does.

    Args:
        parts: the models; the teacher is another one than the student's.
        teaching: what is taught.
        loss: how the parts of the loss count.
        samples: what the model made.
    """

    def __init__(self, parts: Parts, teaching: Teaching, loss: FeatureLoss, samples: MadeSamples):
        super().__init__(parts, teaching)
        self.loss, self.samples = loss, samples
        layers = loss.layers if loss.attention else ()
        self._outputs = [Outputs(model, layers) for model in (self.network, parts.teacher)]
        self._levels = Levels("uniform", low=LOWEST)

    def forward(self, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a micro-batch and its parts as figures; see :class:`Student`."""
        prompts, drawn, levels = [], [], []
        for place in self.places(rank):
            generator = self._generator(_PICK, number, place)
            prompt, tensors = self.samples.drawn(generator)
            levels.append(self._levels.draw(1, generator))
            empty = float(torch.rand((), generator=self._generator(_EMPTY, number, place))) < self.loss.dropout
            prompts.append(self.teaching.negative if empty else prompt)
            drawn.append(tensors)
        stacked = {name: torch.stack([each[name] for each in drawn]).to(self.device) for name in drawn[0]}
        clean, level = stacked.pop(self._stream), torch.cat(levels).to(self.device)
        noisy, target = self.teaching.objective.noised(clean, self._noise(_NOISE, number, rank), level)
        asked = (noisy, level, self._texts(prompts), self._told_guidance(), stacked)
        with torch.no_grad(), self._off() as teacher, self._outputs[1].kept() as theirs:
            wanted = self._answer(teacher, *asked).float()
        with self._outputs[0].kept() as ours:
            answer = self._answer(self.network, *asked).float()
        found = {"loss model": (answer - target).square().mean(), "loss answer": (answer - wanted).square().mean()}
        loss = found["loss model"] + self.loss.answer * found["loss answer"]
        if ours:
            pairs = zip(ours, theirs, strict=True)
            found["loss attention"] = torch.stack([(a.float() - b.float()).square().mean() for a, b in pairs]).mean()
            loss = loss + self.loss.attention * found["loss attention"]
        return loss, {name: float(value.detach()) for name, value in found.items()}
