"""The step tracker's small rules: reading counters, warm-up evaluations, tables of timesteps, one number per call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from genkit.patching.step_tracker import _MISSING, StepTracker, _as_number, _counter, _in_table, _warmup


def scheduler(count, **more):
    return SimpleNamespace(timesteps=torch.linspace(1000, 100, count), **more)


def test_counters_by_either_name():
    assert _counter(scheduler(4, _step_index=3, counter=5)) == 3 and _counter(scheduler(4, counter=5)) == 5
    assert _counter(scheduler(4, _step_index=None)) is None and _counter(scheduler(4)) is _MISSING


@pytest.mark.parametrize(
    ("entries", "steps", "order", "warmup"),
    [(10, 10, 1, 0), (13, 10, 1, 3), (19, 10, 2, 0), (23, 10, 2, 3), (9, None, 1, 0)],
)
def test_warm_up_is_what_the_table_has_beyond_its_steps(entries, steps, order, warmup):
    assert _warmup(scheduler(entries, num_inference_steps=steps, order=order)) == warmup
    assert order > 1 or _warmup(scheduler(entries, num_inference_steps=steps)) == warmup


def test_timesteps_are_looked_up_as_they_are_and_as_shares_of_1000():
    table = scheduler(10)
    assert _in_table(table, (1000.0, 900.0)) and _in_table(table, (1.0, 0.9)) and _in_table(table, (900.5,))
    assert not _in_table(table, (1000.0, 0.9)) and not _in_table(table, (950.0,)) and not _in_table(table, (0.95,))


def test_one_number_for_a_timestep():
    assert _as_number(None) is None and _as_number(torch.empty(0)) is None
    assert _as_number(7) == 7.0 and _as_number(torch.tensor([[1.0, 5.0], [3.0, 0.0]])) == 5.0


def test_a_run_that_begins_in_the_middle_has_fewer_entries():
    tracker = StepTracker()
    assert tracker._entries(scheduler(10)) == tracker._entries(scheduler(10, _begin_index=None)) == 10
    assert tracker._entries(scheduler(10, _begin_index=4)) == 6
    for told, entries in ((1, 1), (10, 10), (0, 6), (11, 6), (None, 6)):
        driver = SimpleNamespace(_num_timesteps=told)
        tracker._driver = lambda driver=driver: driver
        assert tracker._entries(scheduler(10, _begin_index=4)) == entries


def test_steps_are_counted_in_entries_per_step_or_in_values():
    tracker = StepTracker()
    assert tracker._count_steps(scheduler(19, num_inference_steps=10, order=2)) == 10
    assert tracker._count_steps(scheduler(13, num_inference_steps=10)) == 10
    tracker._counts_index = False
    twice = SimpleNamespace(timesteps=torch.tensor([9.0, 5.0, 5.0, 2.0, 2.0]), _begin_index=1)
    assert tracker._count_steps(twice) == 2


def test_announced_steps_count_by_the_schedulers_order():
    tracker = StepTracker()
    tracker._follow(5, 9, SimpleNamespace(order=2))
    assert (tracker._step, tracker._steps, tracker._run) == (2, 5, 0)
    tracker._follow(4, None, SimpleNamespace(order=2))
    assert (tracker._step, tracker._steps, tracker._run) == (2, 5, 0)
    tracker._follow(3, None, scheduler(7, order=2))
    assert (tracker._step, tracker._steps, tracker._run) == (1, 4, 1)
    tracker._follow(0, None, None)
    assert (tracker._step, tracker._steps, tracker._run) == (0, None, 2)


def test_without_a_scheduler_a_timestep_that_turns_begins_another_run():
    tracker = StepTracker()
    moments = [tracker.tick(None, value) for value in (9.0, 9.0, 6.0, 3.0, 9.0, 6.0)]
    assert [(each.step, each.run) for each in moments] == [(0, 0), (0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    counted = StepTracker(total=2)
    moments = [counted.tick(None, value) for value in (9.0, 6.0, 3.0, 1.0)]
    assert [(each.step, each.steps, each.run) for each in moments] == [(0, 2, 0), (1, 2, 0), (0, 2, 1), (1, 2, 1)]


def test_without_a_scheduler_every_announced_index_is_a_step():
    tracker = StepTracker()
    tracker._follow(3, 8, None)
    assert (tracker._step, tracker._steps) == (3, 8)


def test_what_another_patch_knows_is_added_and_nothing_is_taken_away():
    class Pipe:
        scheduler = None

    pipe, tracker = Pipe(), StepTracker()
    tracker.learn(pipe, None)
    assert tracker._pipe() is pipe and tracker._total is None
    tracker.learn(None, 5)
    assert tracker._pipe() is pipe and (tracker._total, tracker._steps) == (5, 5)


def test_a_table_ends_a_run_where_it_ends_whichever_way_it_goes():
    tracker = StepTracker(total=3)
    tracker._value, tracker._ticks = 5.0, 1
    assert not tracker._turned(scheduler(3), 9.0) and not tracker._turned(scheduler(3), 1.0)
    tracker._ticks = 2
    assert tracker._turned(scheduler(3), 9.0)


def test_a_loop_outside_of_pipelines_with_strange_timesteps_is_foreign_to_the_scheduler():
    table = scheduler(10)
    tracker = StepTracker()
    assert tracker._own_loop(table, (900.0,)) is table and tracker._own_loop(table, (None,)) is table
    assert tracker._own_loop(None, (3.0,)) is None and not tracker._foreign
    assert tracker._own_loop(table, (950.0,)) is None and tracker._foreign
    assert not tracker._counts_index
    driven = StepTracker()
    driven._driver = lambda: None
    assert driven._own_loop(table, (950.0,)) is table and not driven._foreign
