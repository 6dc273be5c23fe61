"""Rules in force on a model: put on, told what the rows are, asked for maps, taken off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genkit.control.maps import Maps
from genkit.control.method import ControlMethod, ControlState, RowRule
from genkit.control.rows import Rows
from genkit.control.rules import Rule
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.patching import PatchHandle, Report, patch
from genkit.patching.parts import Part
from genkit.patching.schedule import Schedule
from genkit.patching.targets import find_denoisers

if TYPE_CHECKING:
    import torch


class Control:
    """Rules on a pipeline's or a denoiser's attention, through the gate like every method.

    Only layers that some rule can reach are taken, so that a sparse method may run on the others. Where no rule is
    active, the model's own attention runs, bit for bit; ``remove()`` or leaving the ``with`` block restores the model.

    Args:
        target: a Diffusers pipeline or a bare denoiser.
        rules: any of ``genkit.control``'s rules, applied within a call in this order: takes, then extra segments,
            forbidden pairs and scaled keys, then attention, then maps written in the order of the rules, then read.
        rows: who the rows of every call are, when ``begin`` does not tell: a :class:`Rows`, or a function from (number
            of rows, announced branch) to one.
        backend: as in :func:`genkit.patch`.

    Raises:
        UsageError: no rules. UnsupportedError: rules that reach no layer of this model.

    Example (the source's attention maps, injected into the target's row for the first half of the steps):
        >>> import genkit, torch
        >>> from genkit.control import Control, ReadMaps, Rows, Take, Where, text_tokens
        >>> pipe = genkit.load("toy-image")
        >>> prompts = ["a red circle", "a blue circle"]
        >>> text = torch.cat([pipe.encode_prompt([p], "cpu", 1, False)[0] for p in prompts])
        >>> word = text_tokens(pipe, prompts[1], "blue")
        >>> rules = [Take("qk", of="source", into="target", where=Where(stop=0.5)),
        ...          ReadMaps(name="word", of="target", tokens=word, where=Where(grids=((16, 16),)))]
        >>> rows = Rows.of("source", "target", guided=False)
        >>> latents = torch.randn(1, 4, 32, 32).repeat(2, 1, 1, 1)
        >>> with Control(pipe.unet, rules) as control, torch.no_grad():
        ...     control.begin(step=0, steps=4, rows=rows)
        ...     answer = pipe.unet(latents, 999, encoder_hidden_states=text).sample
        >>> control.maps.latest("word").shape
        torch.Size([1, 1, 16, 16, 1])
    """

    def __init__(
        self,
        target: Any,
        rules: Sequence[Rule],
        *,
        rows: Rows | RowRule | None = None,
        backend: str = "auto",
    ):
        rules = tuple(rules)
        if not rules:
            raise UsageError("a control needs at least one rule")
        for rule in rules:
            if not isinstance(rule, Rule):
                raise UsageError(explain("rule", rule, "a rule of genkit.control such as Take(...) or ReadMaps(...)"))
        self._rows = rows
        self.state = ControlState(rows)
        self.method = ControlMethod(rules, self.state)
        self.handle: PatchHandle = patch(target, _parts(target, self.method), backend=backend)

    def begin(self, *, step: int | None = None, steps: int | None = None, rows: Rows | None = None) -> None:
        """Say what the next denoiser call is; holds until the next ``begin``.

        Args:
            step, steps: index of the sampling step and their number; None = as the gate counts them.
            rows: who the rows are; None = as the control was made with.
        """
        self.state.step, self.state.steps = step, steps
        self.state.rows = self._rows if rows is None else rows

    @property
    def maps(self) -> Maps:
        """Maps that ``ReadMaps`` rules gathered."""
        return self.state.maps

    def propagate(
        self,
        name: str,
        vector: torch.Tensor,
        *,
        rounds: int = 1,
        keep: float = 0.0,
        grid: tuple[int, ...] | None = None,
    ) -> torch.Tensor:
        """Spread a value per picture token along self-attention: ``rounds`` times ``C <- keep C + (1 - keep) S C``.

        S is the mean over heads and kept layers of the attention among the picture's tokens; S C is computed with C as
        the values, so no map is made.

        Args:
            name: of a :class:`KeepPairs` rule whose layers the latest call reached.
            vector: (rows kept, tokens) or (rows kept, tokens, channels), or with (T, H, W) in place of the tokens.
            rounds, keep: how often, and the share of a round that stays as it was.
            grid: which of the kept grids, (H, W) or (T, H, W), where several were kept.

        Returns:
            The same shape, float32 or wider.

        Source: ViMAEdit (keep 0.5, 5 rounds).
        """
        from genkit.control.propagation import propagate

        pairs = self.state.pairs.get(name)
        if not pairs:
            raise UsageError(explain("kept pairs", name, list(self.state.pairs) or "none were kept in the latest call"))
        return propagate(pairs, vector, rounds, keep, grid)

    def report(self) -> Report:
        """What ran; see :meth:`genkit.PatchHandle.report`."""
        return self.handle.report()

    def remove(self) -> None:
        """Restore the model bit for bit. Twice is harmless; maps stay readable."""
        self.handle.remove()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def parts_of(target: Any, rules: Sequence[Rule]) -> tuple[Part, ...]:
    """Where the rules of a control go on a model, as parts of a patch: for checks before there is anything to patch.

    Raises:
        UnsupportedError: they reach no layer.
    """
    return _parts(target, ControlMethod(tuple(rules)))


def _parts(target: Any, method: ControlMethod) -> tuple[Part, ...]:
    """The method on every layer some rule can reach, one part per kind of attention."""
    reached: dict[str, set[int]] = {}
    kinds: dict[str, None] = {}
    for denoiser in find_denoisers(target):
        for found in denoiser.sites:
            layer, layers = denoiser.layer(found)
            kinds[found.role] = None
            name = denoiser.prefix + found.path
            if any(rule.where.at_layer(name, found.role, layer, layers, rule.usual) for rule in method.rules):
                reached.setdefault(found.role, set()).add(layer)
    if not reached:
        raise UnsupportedError(
            f"no rule of this control reaches a layer: the model has {', '.join(kinds)} attention, the rules ask for "
            f"{', '.join(dict.fromkeys(role for rule in method.rules for role in rule.where.roles or rule.usual))} and "
            f"for layers by name or number"
        )
    return tuple(Part(method, Schedule(layers=sorted(layers)), (role,)) for role, layers in reached.items())
