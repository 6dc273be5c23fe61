"""A bias of -inf hides a pair as a mask does, wherever it lies: every backend, outputs, lse and gradients."""

from __future__ import annotations

from itertools import product

import pytest
from hiding import PLACES, compare, factor_gradients, low_rank, plans, quadratic, table

BIASES = (low_rank, quadratic, table)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("make", BIASES)
def test_a_bias_that_hides_equals_a_mask_on_the_cpu(make, where, nan_memory):
    for plan in plans():
        compare("cpu", make, where, plan)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("make", BIASES)
def test_a_bias_that_hides_equals_a_mask_in_torchs_kernel(make, where, nan_memory, torch_kernel):
    for plan in plans():
        compare("cpu", make, where, plan)


@pytest.mark.parametrize("make", BIASES)
def test_a_bias_that_hides_equals_a_mask_in_the_reference(make):
    for where, plan in product(PLACES, plans()):
        compare("reference", make, where, plan)


@pytest.mark.parametrize("make", BIASES)
def test_a_bias_that_hides_equals_a_mask_in_flex(make):
    for where, plan in product(PLACES, plans()):
        compare("flex", make, where, plan, with_gradients=False)


@pytest.mark.parametrize("where", PLACES)
def test_factors_get_the_gradient_of_what_they_do_not_hide(where, torch_kernel):
    factor_gradients("cpu", where)
    factor_gradients("reference", where)


@pytest.mark.parametrize("where", PLACES)
def test_factors_get_the_gradient_of_what_they_do_not_hide_where_kernels_are_native(where):
    factor_gradients("cpu", where)
