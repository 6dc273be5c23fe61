"""The branches of an edit (source, target, ...) as rows of one denoiser call, with guidance and attention control."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genkit.control import Control, Rule
from genkit.control.rows import Row, Rows
from genkit.editing.shared.model import Conditions, EditModel


@dataclass(frozen=True)
class Branch:
    """One branch of an edit.

    Args:
        prompt: what it shows.
        negative: what guidance leads away from.
        guidance: scale of classifier-free guidance; 1 = none. Of denoisers that take the scale as an input, that input.
    """

    prompt: str
    negative: str = ""
    guidance: float = 1.0


class Calls:
    """Calls of the denoiser for named rows, as pipelines of its family make them.

    Args:
        model: whose denoiser is called.
        control: attention control; told what the rows are before every call. None = none.
        guidance: scale by role, of denoisers that take it as an input; None for the others.
        beside: (1, c, h, w) further channels of every row, see :meth:`EditModel.predict`.
    """

    #: The half that is called first where a family calls them apart; the last one's maps and pairs are kept.
    first_half = False

    def __init__(
        self,
        model: EditModel,
        control: Any = None,
        guidance: Mapping[str, float] | None = None,
        beside: torch.Tensor | None = None,
    ):
        self.model, self.control, self.guidance, self.beside = model, control, guidance, beside
        self._apart = bool(model.family.branches)

    def answers(
        self, rows: Rows, batch: torch.Tensor, conditions: Conditions, level: float, step: int, steps: int
    ) -> torch.Tensor:
        """Answers (B, ...) of named rows.

        Args:
            rows: who they are. batch: (B, ...) their latents. conditions: of as many rows.
            level: noise level of all of them.
            step, steps: where the run is.
        """
        if self._apart:
            return self._halves(rows, batch, conditions, level, step, steps)
        return self._call(rows, batch, conditions, level, step, steps)

    def _halves(
        self, rows: Rows, batch: torch.Tensor, conditions: Conditions, level: float, step: int, steps: int
    ) -> torch.Tensor:
        """One call for each half, as pipelines of this family make them, announced likewise."""
        parts: dict[int, torch.Tensor] = {}
        network = self.model.network(level)
        for conditional in (self.first_half, not self.first_half):
            numbers = [number for number, row in enumerate(rows.entries) if row.conditional is conditional]
            if not numbers:
                continue
            with _announced(network, "cond" if conditional else "uncond", step, level, steps):
                half = rows.half(conditional)
                found = self._call(half, batch[numbers], conditions.rows(numbers), level, step, steps)
            parts.update(zip(numbers, found, strict=True))
        return torch.stack([parts[number] for number in sorted(parts)])

    def _call(
        self, rows: Rows, batch: torch.Tensor, conditions: Conditions, level: float, step: int, steps: int
    ) -> torch.Tensor:
        if self.control is not None:
            self.control.begin(step=step, steps=steps, rows=rows)
        guidance = None
        if self.guidance is not None:
            guidance = [self.guidance[row.role] for row in rows.entries]
        beside = None if self.beside is None else self.beside.expand(len(batch), -1, -1, -1)
        return self.model.predict(batch, level, conditions, guidance=guidance, beside=beside)


class Branches(Calls):
    """Answers for several branches at once.

    Args:
        model: whose denoiser is called.
        branches: by role, in the order of the rows.
        control: attention control; told what the rows are before every call. None = none.
        together: every branch gets an unconditional row as soon as one has guidance: rules of a control then act on
            both halves alike. Without it only branches with guidance have one.
        slots: text tokens, see :meth:`EditModel.texts`.
        beside: (1, c, h, w) further channels of every row, see :meth:`EditModel.predict`.
    """

    def __init__(
        self,
        model: EditModel,
        branches: Mapping[str, Branch],
        *,
        control: Any = None,
        together: bool = False,
        slots: int | None = None,
        beside: torch.Tensor | None = None,
    ):
        self.branches, embedded = dict(branches), model.embeds_guidance
        told = {role: branch.guidance for role, branch in self.branches.items()} if embedded else None
        super().__init__(model, control, told, beside)
        scales = {role: 1.0 if embedded else branch.guidance for role, branch in self.branches.items()}
        guided = [role for role, scale in scales.items() if scale != 1]
        self.scales = scales
        self.slots = slots
        self.rows = Rows.of(*scales, guided=bool(guided) if together else guided)
        texts = {row: self._text(row.role, row.conditional) for row in self.rows.entries}
        unique = list(dict.fromkeys(texts.values()))
        made = model.texts(unique, slots)
        self.conditions = made.rows([unique.index(texts[row]) for row in self.rows.entries])
        #: Whether guidance counts; without it only rows with the prompts are called.
        self.guided = True

    def _text(self, role: str, conditional: bool) -> str:
        branch = self.branches[role]
        return branch.prompt if conditional else branch.negative

    def states(self, role: str) -> torch.Tensor:
        """Text states (tokens, C) of a branch's prompt, as the denoiser reads them."""
        return self.conditions.tensors["states"][self.rows.index(role, conditional=True)[0]]

    @contextlib.contextmanager
    def under(self, rules: Sequence[Rule]) -> Iterator[None]:
        """Calls within the block are made under a control of these rules, and under none where there are none."""
        with Control(self.model.pipe, rules) if rules else contextlib.nullcontext() as self.control:
            yield

    def __call__(
        self, latents: Mapping[str, torch.Tensor], level: float, step: int, steps: int
    ) -> dict[str, torch.Tensor]:
        """Answers by role, after guidance.

        Args:
            latents: by role, one row (1, ...) each; of all branches or of some, in their order.
            level: noise level of all of them.
            step, steps: where the run is.
        """
        chosen = [number for number, row in enumerate(self.rows.entries) if self._called(row, latents)]
        rows, conditions = self.rows, self.conditions
        if len(chosen) < len(rows):
            rows = Rows(tuple(self.rows.entries[number] for number in chosen))
            conditions = self.conditions.rows(chosen)
        batch = torch.cat([latents[row.role] for row in rows.entries])
        answers = self.answers(rows, batch, conditions, level, step, steps)
        found = {}
        for role in latents:
            (row,) = rows.index(role, conditional=True)
            answer, scale = answers[row : row + 1], self.scales[role] if self.guided else 1
            for other in rows.index(role, conditional=False) if scale != 1 else ():
                without = answers[other : other + 1]
                answer = without + scale * (answer - without)
            found[role] = answer
        return found

    def _called(self, row: Row, latents: Mapping[str, torch.Tensor]) -> bool:
        return row.role in latents and (self.guided or row.conditional)


def _announced(network: Any, name: str, step: int, level: float, steps: int) -> Any:
    """The denoiser's own announcement of a branch, where it has one."""
    if not hasattr(network, "cache_context"):
        return contextlib.nullcontext()
    return network.cache_context(name, step_index=step, sigma=level, num_inference_steps=steps)
