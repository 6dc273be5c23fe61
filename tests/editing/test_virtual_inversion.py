"""Numbers of InfEdit's step, of its timesteps and of the flow samplers, worked out apart from the code."""

from types import SimpleNamespace

import pytest
import torch

from genkit.editing.flow_edit.sampler import flow_edit
from genkit.editing.infedit.control import early_steps, refined_steps, unified_control
from genkit.editing.infedit.sampler import LAYOUT, SOURCE, TARGET, consistent, renoised, virtual_inversion
from genkit.editing.shared.levels import lcm_timesteps
from genkit.editing.shared.model import EditModel
from genkit.editing.shared.walk import step
from genkit.families.training.objectives import Flow, Table

KEPT = torch.tensor([0.64, 0.25], dtype=torch.float64)


def model_of(objective):
    """The arithmetic of a model, without a network."""
    model = EditModel.__new__(EditModel)
    model.objective = objective
    model.draw = lambda like, generator: torch.randn(like.shape, generator=generator, dtype=like.dtype)
    return model


def one(value):
    return torch.tensor([[value]], dtype=torch.float64)


EPSILON = model_of(Table(KEPT, "epsilon"))
NOISY, ANSWERS = {SOURCE: one(0.5), TARGET: one(0.5)}, {SOURCE: one(0.3), TARGET: one(0.5)}


def test_a_step_gives_the_scalars_of_the_card():
    clean = consistent(EPSILON, one(1.0), NOISY, ANSWERS, 0.75)
    assert clean[TARGET].item() == pytest.approx(1 - 0.2 * 3**0.5, abs=1e-12)
    assert clean[SOURCE].item() == 1


@pytest.mark.parametrize(
    ("eta", "source", "target"), [(1.0, 0.2, -0.077128), (0.5, 0.460589, 0.183461), (0.0, 0.92, 0.642872)]
)
def test_the_next_latents_are_those_of_the_card_for_every_share_of_fresh_noise(eta, source, target):
    clean = consistent(EPSILON, one(1.0), NOISY, ANSWERS, 0.75)
    found = renoised(EPSILON, one(1.0), clean, NOISY, ANSWERS, 0.75, 0.25, one(-1.0), eta)
    assert found[SOURCE].item() == pytest.approx(source, abs=1e-6)
    assert found[TARGET].item() == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_both_forms_of_the_step_agree(prediction):
    model = model_of(Table(KEPT, prediction))
    torch.manual_seed(0)
    source, noisy, other, seen, wanted = torch.randn(5, 4, 3, dtype=torch.float64)
    found = consistent(model, source, {SOURCE: noisy, TARGET: other}, {SOURCE: seen, TARGET: wanted}, 0.75)[TARGET]
    signal, spread = model.parts(0.75)
    exact = (noisy - signal * source) / spread
    noise = model.noise(other, wanted, 0.75) - model.noise(noisy, seen, 0.75) + exact
    if prediction == "epsilon":
        torch.testing.assert_close(found, (other - spread * noise) / signal, atol=4e-15, rtol=1e-12)
    velocity = (signal * noisy - source) / spread
    if prediction == "v_prediction":
        torch.testing.assert_close(found, signal * other - spread * (wanted - seen + velocity))


@pytest.mark.parametrize("objective", [Flow(), Table(KEPT, "epsilon"), Table(KEPT, "v_prediction")], ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_equal_answers_give_the_input_back_whatever_the_noise(objective, eta):
    source = torch.randn(1, 2, 3, dtype=torch.float64)

    def predict(latents, level, index, steps):
        answer = torch.randn(1, 2, 3, dtype=torch.float64)
        return dict.fromkeys(latents, answer)

    made = virtual_inversion(
        model_of(objective), source, predict, {SOURCE: 0, TARGET: 0}, (0.75, 0.25, 0.0), eta=eta
    )  # fmt: skip
    torch.testing.assert_close(made, source)


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        (15, [999, 939, 879, 799, 739, 679, 599, 539, 479, 399, 339, 279, 199, 139, 79]),
        (12, [999, 919, 839, 759, 679, 599, 499, 419, 339, 259, 179, 99]),
    ],
)
def test_timesteps_of_latent_consistency_models(steps, times):
    from diffusers import LCMScheduler

    assert lcm_timesteps(steps) == times
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == times


def shift(latents, level, index, steps):
    """Exact velocities of normal data with standard deviation 1 and mean 0 (source) or 3 (target)."""
    means = {SOURCE: 0.0, TARGET: 3.0}
    variance = (1 - level) ** 2 + level**2
    return {
        role: -means[role] + (2 * level - 1) / variance * (z - (1 - level) * means[role])
        for role, z in latents.items()
    }  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 4, 28])
def test_both_flow_samplers_move_normal_data_by_the_difference_of_the_means(steps):
    model, source = model_of(Flow()), torch.randn(1, 50, dtype=torch.float64)
    levels = tuple(1 - index / steps for index in range(steps + 1))
    edited = flow_edit(model, source, shift, levels)
    consistently = virtual_inversion(model, source, shift, {SOURCE: 0, TARGET: 0}, levels)
    torch.testing.assert_close(edited, source + 3)
    torch.testing.assert_close(consistently, source + 3)


def test_one_step_of_flow_edit_is_one_step_of_the_consistent_sampler():
    model, source = model_of(Flow()), torch.randn(1, 6, dtype=torch.float64)

    def predict(latents, level, index, steps):
        return {role: torch.sin(3 * z) if role == TARGET else torch.cos(z) for role, z in latents.items()}

    made = [
        flow_edit(model, source, predict, (1.0, 0.0), generator=torch.Generator().manual_seed(0)),
        virtual_inversion(
            model, source, predict, {SOURCE: 0, TARGET: 0}, (1.0, 0.0), generator=torch.Generator().manual_seed(0)
        ),
    ]
    torch.testing.assert_close(*made, atol=1e-15, rtol=1e-15)


def test_a_step_of_flow_edit_gives_the_scalars_of_the_card():
    model, seen = model_of(Flow()), {}
    model.draw = lambda like, generator: one(-1.0)

    def predict(latents, level, index, steps):
        if index == 0:  # brings the edit to 1.4 before the step that is looked at
            return {SOURCE: one(0.0), TARGET: one(-0.8)}
        seen.update(latents)
        return {SOURCE: one(0.2), TARGET: one(-0.6)}

    made = flow_edit(model, one(1.0), predict, (1.0, 0.5, 0.25))
    assert (seen[SOURCE].item(), seen[TARGET].item()) == (0.0, pytest.approx(0.4))
    assert made.item() == pytest.approx(1.6)


def test_plain_steps_of_flow_edit_follow_the_target_alone():
    model, source = model_of(Flow()), torch.randn(1, 6, dtype=torch.float64)
    calls = []

    def predict(latents, level, index, steps):
        calls.append(latents)
        return {SOURCE: one(7.0), TARGET: one(2.0)}

    noise = torch.randn(1, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    made = flow_edit(model, source, predict, (0.5, 0.0), plain=1, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(made, 0.5 * source + 0.5 * noise - 0.5 * 2)


@pytest.mark.parametrize("objective", [Flow(), Table(KEPT, "epsilon"), Table(KEPT, "v_prediction")], ids=str)
def test_a_step_up_and_down_with_one_answer_comes_back(objective):
    model = model_of(objective)
    latents, answer = torch.randn(2, 1, 3, dtype=torch.float64)
    signal, spread = model.parts(0.25)
    up = step(model, latents, answer, 0.25, 0.75)
    clean, noise = model.clean(latents, answer, 0.25), model.noise(latents, answer, 0.25)
    torch.testing.assert_close(signal * clean + spread * noise, latents)
    wide = model.parts(0.75)
    torch.testing.assert_close(up, wide[0] * clean + wide[1] * noise)


def test_a_step_equals_those_of_diffusers():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    latents, answer, noise = torch.randn(3, 1, 4, 2, 2)
    model = model_of(Table(scheduler.alphas_cumprod, "epsilon"))
    first, second = ((int(t) + 0.5) / 1000 for t in scheduler.timesteps[:2])
    for eta in (0.0, 0.7, 1.0):
        wanted = scheduler.step(answer, scheduler.timesteps[0], latents, eta=eta, variance_noise=noise).prev_sample
        found = step(model, latents, answer, first, second, eta=eta, fresh=noise)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    euler = FlowMatchEulerDiscreteScheduler()
    euler.set_timesteps(4)
    wanted = euler.step(answer, euler.timesteps[0], latents).prev_sample
    levels = [float(sigma) for sigma in euler.sigmas[:2]]
    torch.testing.assert_close(step(model_of(Flow()), latents, answer, *levels), wanted)


@pytest.mark.parametrize(
    ("share", "early", "refined"), [(0.0, 0, 0), (0.3, 4, 4), (0.7, 10, 10), (0.6, 8, 9), (1.0, 14, 15), (1.1, 15, 15)]
)
def test_phases_begin_where_the_published_comparisons_say(share, early, refined):
    progress = [(index + 1) / 15 for index in range(15)]
    assert early_steps(share, 15) == sum(p < share - 1e-9 for p in progress) == early
    assert refined_steps(min(share, 1), 15) == sum(p <= min(share, 1) + 1e-9 for p in progress) == refined


def test_the_layout_is_a_branch_of_its_own_only_where_something_reads_it():
    alignment = SimpleNamespace()
    assert unified_control(alignment, 15, cross=0.7, self_=0.7).begins == 15
    assert unified_control(alignment, 15, cross=0.7, self_=0.7, blends=True).begins == 10
    plan = unified_control(alignment, 15, cross=1.0, self_=0.3)
    assert plan.begins == 4 and plan.reads == ((SOURCE, "0:4"), (LAYOUT, "4:15"))
    assert [str(rule) for rule in plan.rules] == [
        "take qk source->target", "take kv source->layout", "take q target->layout", "refine source->target",
        "refine layout->target",
    ]  # fmt: skip
