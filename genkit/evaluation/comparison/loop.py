"""The runs of a comparison: one process, every prompt and seed through all variants before the next one begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from genkit.errors import GenkitError, UnsupportedError, said
from genkit.evaluation.comparison import judged, memory, perceptual, sets
from genkit.evaluation.comparison.makers import Maker, Run, as_array
from genkit.evaluation.comparison.numbers import Output, compare_outputs
from genkit.evaluation.comparison.results import Comparison, Found, Row
from genkit.patching.meter import AttentionCost
from genkit.patching.watch import Watch
from genkit.pipelines.following import STEP, Interrupted


class Follower:
    """Who follows a comparison. All that is told by default is nothing."""

    def warming(self, name: str) -> None:
        """A variant warms up."""

    def begins(self, name: str, prompt: str, seed: int) -> None:
        """A run begins."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """As in :data:`genkit.pipelines.following.Progress`."""

    def made(self, row: Row, found: Found, run: Run) -> None:
        """A run is made; its numbers follow with :meth:`round_ended`."""

    def failed(self, row: Row) -> None:
        """A variant gave up."""

    def round_ended(self, comparison: Comparison, outputs: Mapping[str, Output]) -> None:
        """All variants made one prompt and seed; the outputs are dropped afterwards."""


@dataclass
class Loop:
    """Runs variants.

    Args:
        makers: by the variants' names; the first is the baseline.
        comparison: which is filled; its rows have the same names in the same order.
        follower: who is told.
        with_perceptual: whether what ``genkit[metrics]`` measures is computed.
        warm_up: run the first steps of every variant once before anything is timed.
    """

    makers: Mapping[str, Maker]
    comparison: Comparison
    follower: Follower
    with_perceptual: bool = False
    warm_up: bool = True

    def run(self) -> None:
        """Everything. A variant that fails is left out from there on; the others go on.

        Order: the variants take turns at being first, so that a change of the machine's pace meets all alike.
        """
        comparison = self.comparison
        with self._watches() as watches:
            if self.warm_up:
                for row in comparison.rows:
                    self._warm(row)
            before: dict[str, Output] = {}
            for number, (prompt, seed) in enumerate(product(comparison.prompts, comparison.seeds)):
                turn = number % len(comparison.rows)
                outputs: dict[str, Output] = {}
                for row in [*comparison.rows[turn:], *comparison.rows[:turn]]:
                    if row.failed is None:
                        self._one(row, prompt, seed, watches, outputs)
                self._compare(prompt, seed, outputs, before)
                self.follower.round_ended(comparison, outputs)
                if all(row.failed is not None for row in comparison.rows):
                    return
        comparison.finished = True

    @contextmanager
    def _watches(self) -> Iterator[dict[int, Watch]]:
        """A watch on every pipeline; none on those whose denoisers genkit does not know, which is told."""
        found: dict[int, Watch] = {}
        try:
            for maker in self.makers.values():
                pipeline = maker.pipeline
                if id(pipeline) not in found:
                    try:
                        found[id(pipeline)] = Watch(pipeline)
                    except UnsupportedError as error:
                        self.comparison.told.append(f"time and operations of attention are not told: {error}")
            yield found
        finally:
            for watch in found.values():
                watch.remove()

    def _warm(self, row: Row) -> None:
        """The first two steps in which the variant acts: kernels are compiled and memory is claimed there."""
        maker, done = self.makers[row.name], 0
        self.follower.warming(row.name)
        with self._guarded(row):
            wanted = maker.begins() + 2

            def progress(phase: str, step: int, total: int) -> None:
                nonlocal done
                done = step if phase == STEP else done

            try:
                first = (self.comparison.prompts[0], self.comparison.seeds[0])
                maker.make(*first, progress, lambda latents: None, lambda: done >= wanted)
            except Interrupted:
                pass

    @contextmanager
    def _guarded(self, row: Row) -> Iterator[None]:
        """Note why a variant fails, and go on with the others."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except GenkitError as error:
            row.failed = said(error)
        except Exception as error:  # a fault in a model's or Diffusers' code must not cost the other runs
            row.failed = f"unexpected {type(error).__name__}: {said(error)}"
        if row.failed is not None:
            self.follower.failed(row)

    def _one(self, row: Row, prompt: str, seed: int, watches: Mapping[int, Watch], outputs: dict[str, Output]) -> None:
        maker = self.makers[row.name]
        kept: list[Any] = []
        self.follower.begins(row.name, prompt, seed)
        with self._guarded(row):
            watch = watches.get(id(maker.pipeline))
            if watch is not None:
                watch.clear()

            def keep(latents: Any) -> None:
                kept.append(as_array(latents))

            with memory.peak(maker.device) as peak:
                run = maker.make(prompt, seed, self.follower.progress, keep, None)
            cost = None if watch is None else watch.cost()
            row.told += [line for line in maker.told if line not in row.told]
            found = Found(prompt, seed, run.seconds, peak.bytes, cost, run.report)
            found.judged = judged.accuracy(prompt, run.output.frames)
            output = Output(run.output.frames, run.output.fps, run.output.audio, run.output.rate, tuple(kept))
            if self._looks(output):
                found.look = sets.look_of(output.frames)
            outputs[row.name] = output
            row.runs.append(found)
            if row is not self.comparison.baseline and cost is not None and _saves_nothing(cost, run.report):
                line = "every pair of attention was executed: a difference in attention time is overhead or chance"
                row.told += [line] if line not in row.told else []
            self._draw(row, watch)
            self.follower.made(row, found, run)

    def _looks(self, output: Output) -> bool:
        """Whether features of an output are wanted and can be had: sets of fewer prompts have no distance."""
        enough = len(set(self.comparison.prompts)) >= sets.LEAST and min(output.frames.shape[1:3]) >= perceptual.LEAST
        return self.with_perceptual and enough and perceptual.why_not() is None

    def _draw(self, row: Row, watch: Watch | None) -> None:
        """What the variant's methods see, once."""
        if watch is None or row.name in self.comparison.masks:
            return
        from genkit.evaluation.comparison.masks import pictures

        self.comparison.masks[row.name] = pictures(watch.served)

    def _compare(self, prompt: str, seed: int, outputs: Mapping[str, Output], before: dict[str, Output]) -> None:
        """Distances of a round's outputs from the baseline's, and of the baseline from itself at the seed before."""
        comparison = self.comparison
        its = outputs.get(comparison.baseline.name)
        for row in comparison.rows[1:]:
            found = row.find(prompt, seed)
            if found is not None and its is not None:
                found.numbers = compare_outputs(outputs[row.name], its, self.with_perceptual)
        if its is None:
            return
        if prompt in before:
            comparison.scale.append(compare_outputs(its, before[prompt], self.with_perceptual).values)
        before.clear()
        before[prompt] = its


def _saves_nothing(cost: AttentionCost, report: Mapping[str, Any] | None) -> bool:
    """Whether a method ran and the machine executed what dense attention would."""
    return bool(report) and cost.executed is not None and cost.executed >= 0.9995 * cost.dense
