"""Steps and branches as real pipelines and schedulers run them, and as bare loops do."""

from __future__ import annotations

import pytest
import tiny
import torch
from gate_methods import Full, Recorder

import genkit
from genkit.errors import UsageError
from genkit.patching.step_tracker import StepTracker


@pytest.fixture(scope="module")
def wan_pipe():
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=tiny.build("wan").model,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _run_wan(pipe, steps, guidance=2.0):
    g = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 1, 7, 16, generator=g)
    return pipe(
        prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], height=32, width=32, num_frames=5,
        num_inference_steps=steps, guidance_scale=guidance, output_type="latent", generator=g,
    ).frames  # fmt: skip


def _sd(scheduler):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=tiny.build("unet").model, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _run_sd(pipe, steps):
    embeds = torch.ones(2, 1, 6, 16)
    return pipe(
        prompt_embeds=embeds[0], negative_prompt_embeds=-embeds[1], height=64, width=64, num_inference_steps=steps,
        output_type="latent",
    ).images  # fmt: skip


def _steps(handle, role="self"):
    return next(site for site in handle.report().sites if site.role == role).steps


def test_wan_pipeline_steps_branches_and_a_second_run(wan_pipe):
    schedule = genkit.Schedule(steps="1:-1", branches="cond")
    with genkit.patch(wan_pipe, Full(), roles="self", schedule=schedule) as handle:
        reference = _run_wan(wan_pipe, 5)
        report = handle.report(clear=True)
        assert report.steps == 5 and report.forwards == 10
        assert {site.steps for site in report.sites} == {(1, 2, 3)}
        assert {site.branches for site in report.sites} == {("cond",)}
        assert {(site.ran, site.outside) for site in report.sites} == {(3, 7)}
        assert torch.equal(_run_wan(wan_pipe, 5), reference)  # the second run starts at step 0 again
        assert {site.steps for site in handle.report(clear=True).sites} == {(1, 2, 3)}
        _run_wan(wan_pipe, 3, guidance=1.0)
        report = handle.report()
        assert report.steps == 3 and report.forwards == 3 and {site.steps for site in report.sites} == {(1,)}
    assert "cache_context" not in wan_pipe.transformer.__dict__
    torch.testing.assert_close(_run_wan(wan_pipe, 5), reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("steps", "given"), [("10:-2", 8), (":9", 8), ("8", 8)])
def test_schedule_beyond_the_steps(wan_pipe, steps, given):
    with genkit.patch(wan_pipe, Full(), schedule=genkit.Schedule(steps=steps)):
        with pytest.raises(UsageError, match=f"there are {given} steps"):
            _run_wan(wan_pipe, given)


def test_unknown_branch(wan_pipe):
    with genkit.patch(wan_pipe, Full(), schedule=genkit.Schedule(branches="positive")):
        with pytest.raises(UsageError, match="announced as cond, uncond"):
            _run_wan(wan_pipe, 3)
    with genkit.patch(wan_pipe, Full(), schedule=genkit.Schedule(branches="uncond")) as handle:
        _run_wan(wan_pipe, 2)
        assert handle.report().sites[0].branches == ("uncond",)


class _Bar:
    """What a pipeline's progress bar shows, without showing it."""

    def __init__(self):
        self.n = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, by=1):
        self.n += by


def _follow_bar(pipe, denoiser):
    """Make the pipeline count on a bar of ours; returns where the bar stood at every denoiser call, run by run."""
    runs = []

    def progress_bar(iterable=None, total=None):
        runs.append((_Bar(), []))
        return runs[-1][0]

    pipe.progress_bar = progress_bar
    denoiser.register_forward_pre_hook(lambda module, args: runs[-1][1].append(runs[-1][0].n))
    return runs


def _schedulers():
    import diffusers

    return {
        "ddim": (diffusers.DDIMScheduler(), 6),
        "ddpm": (diffusers.DDPMScheduler(), 6),
        "pndm": (diffusers.PNDMScheduler(skip_prk_steps=True), 6),
        "pndm_prk": (diffusers.PNDMScheduler(), 6),
        "euler": (diffusers.EulerDiscreteScheduler(), 6),
        "euler_a": (diffusers.EulerAncestralDiscreteScheduler(), 6),
        "unipc": (diffusers.UniPCMultistepScheduler(), 6),
        "lcm": (diffusers.LCMScheduler(), 4),
        "karras": (diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, num_train_timesteps=40), 16),
        "dpm_2s": (diffusers.DPMSolverSinglestepScheduler(), 6),
        "heun": (diffusers.HeunDiscreteScheduler(), 6),
        "kdpm2": (diffusers.KDPM2DiscreteScheduler(), 6),
        "kdpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler(), 6),
    }


@pytest.mark.parametrize("name", list(_schedulers()))
def test_every_call_counts_to_the_step_the_progress_bar_shows(name):
    """Every scheduler, call by call: the step is where the bar stands, in a first run and in a second."""
    scheduler, steps = _schedulers()[name]
    pipe = _sd(scheduler)
    if name == "karras":
        scheduler.set_timesteps(steps)
        assert len(set(scheduler.timesteps.tolist())) < steps, "this case is about repeated timesteps"
    runs, recorder = _follow_bar(pipe, pipe.unet), Recorder()
    with genkit.patch(pipe, recorder, roles="self", schedule=genkit.Schedule(layers=0)) as handle:
        for number in range(2):
            _run_sd(pipe, steps)
            assert handle.report().steps == steps
            assert [site.step for site, _ in recorder.seen] == runs[number][1]
            assert set(runs[number][1]) == set(range(steps))
            recorder.seen.clear()
    schedule = genkit.Schedule(steps="1:-1", layers=0)
    with genkit.patch(pipe, Full(), roles="self", schedule=schedule) as handle:
        _run_sd(pipe, steps)
        inside = [step for step in runs[-1][1] if 1 <= step < steps - 1]
        assert handle.report().sites[0].ran == len(inside)


def test_image_to_image_counts_its_own_steps():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline

    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler()):
        pipe = StableDiffusionImg2ImgPipeline(**_sd(scheduler).components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        with genkit.patch(pipe, Full(), roles="self", schedule=genkit.Schedule(steps="1:", layers=0)) as handle:
            pipe(
                image=torch.zeros(1, 4, 8, 8), prompt_embeds=torch.ones(1, 6, 16), strength=0.5, num_inference_steps=8,
                negative_prompt_embeds=torch.zeros(1, 6, 16), output_type="latent",
            )  # fmt: skip
            report = handle.report()
        assert report.steps == 4 and report.sites[0].steps == (1, 2, 3)


def _image_to_image(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def _run_i2i(pipe, steps, strength):
    pipe(
        image=torch.zeros(1, 4, 8, 8), prompt_embeds=torch.ones(1, 6, 16), strength=strength, output_type="latent",
        num_inference_steps=steps, negative_prompt_embeds=torch.zeros(1, 6, 16),
    )  # fmt: skip


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_the_pipeline_that_runs_is_believed_not_the_one_that_was_patched(scheduler):
    """A UNet shared by text-to-image and image-to-image (10 steps x 0.5): the last two steps of whoever runs."""
    import diffusers

    pipe = _sd(getattr(diffusers, scheduler)())
    other = _image_to_image(pipe)
    for patched in (pipe, other):
        with genkit.patch(patched, Full(), roles="self", schedule=genkit.Schedule(steps="-2:", layers=0)) as handle:
            for _ in range(2):
                _run_sd(pipe, 10)
                assert handle.report(clear=True).sites[0].steps == (8, 9)
                _run_i2i(other, 10, 0.5)
                report = handle.report(clear=True)
                assert report.steps == 5 and report.sites[0].steps == (3, 4)


def test_a_second_pipeline_with_its_own_scheduler_begins_at_step_0():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

    pipe = _sd(EulerDiscreteScheduler())
    other = StableDiffusionPipeline(**{**pipe.components, "scheduler": DDIMScheduler()}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with genkit.patch(pipe, Full(), roles="self", schedule=genkit.Schedule(steps=":2", layers=0)) as handle:
        for running, steps in ((pipe, 6), (other, 4), (other, 4), (pipe, 3)):
            _run_sd(running, steps)
            report = handle.report(clear=True)
            assert report.steps == steps and report.sites[0].steps == (0, 1)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_loop_of_ones_own_does_not_follow_the_pipelines_old_run(scheduler):
    """Ten steps of the pipeline, then four of a foreign loop, twice: the total is not the pipeline's."""
    import diffusers

    pipe, case = _sd(getattr(diffusers, scheduler)()), tiny.build("unet")
    recorder = Recorder()
    with genkit.patch(pipe, recorder, roles="self", schedule=genkit.Schedule(layers=0)):
        _run_sd(pipe, 10)
        recorder.seen.clear()
        for _ in range(2):
            for t in (990.5, 660.5, 330.5, 0.5):
                with torch.no_grad():
                    pipe.unet(case.args["sample"], t, case.args["encoder_hidden_states"])
    assert [(site.step, site.steps) for site, _ in recorder.seen] == [(step, None) for step in (0, 1, 2, 3)] * 2


def test_two_denoisers_share_the_clock():
    """Wan 2.2: the second transformer takes over in the middle of the run, at the step the run has reached."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=tiny.build("wan").model, transformer_2=tiny.build("wan", seed=1).model, boundary_ratio=0.6,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    with genkit.patch(pipe, Full(), roles="self") as handle:
        _run_wan(pipe, 6)
        report = handle.report()
    by_model = {site.name.split(".")[0]: site.steps for site in report.sites}
    assert set(by_model) == {"transformer", "transformer_2"}
    first, second = by_model["transformer"], by_model["transformer_2"]
    assert first + second == tuple(range(6)) and first and second


def test_a_loop_that_steps_a_copy_of_the_scheduler():
    """Then the scheduler's counter stands still and the timestep is the tracker."""
    import copy

    from diffusers import EulerDiscreteScheduler

    pipe = _sd(EulerDiscreteScheduler())
    case = tiny.build("unet")
    with genkit.patch(pipe, Full(), roles="self", schedule=genkit.Schedule(steps="1:-1", layers=0)) as handle:
        pipe.scheduler.set_timesteps(5)
        loop = copy.deepcopy(pipe.scheduler)
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                sample = pipe.unet(case.args["sample"], t, case.args["encoder_hidden_states"]).sample
            loop.step(sample, t, case.args["sample"])
        report = handle.report()
    assert report.steps == 5 and report.sites[0].steps == (1, 2, 3)


class _Context:
    def __init__(self, name, step_index=None, num_inference_steps=None):
        self.name, self.step_index, self.num_inference_steps = name, step_index, num_inference_steps


def test_bare_clock_restarts_when_time_turns():
    tracker = StepTracker()
    moments = [tracker.tick(None, torch.tensor(t)) for t in (900, 900, 500, 100, 900, 500)]
    assert [(m.step, m.run) for m in moments] == [(0, 0), (0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    rising = StepTracker()
    assert [rising.tick(None, t).step for t in (0.1, 0.5, 0.9, 0.1, 0.5)] == [0, 1, 2, 0, 1]
    known = StepTracker(total=2)
    assert [(m.step, m.steps) for m in (known.tick(None, t) for t in (9, 5, 3, 1))] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    per_token = StepTracker()
    assert [per_token.tick(None, torch.tensor([[0.0, t]])).step for t in (9.0, 9.0, 4.0)] == [0, 0, 1]


def test_announced_steps_and_training():
    tracker = StepTracker()
    moments = [tracker.tick(_Context("cond", i, 3), 5) for i in (0, 0, 1, 2, 0)]
    assert [(m.step, m.steps, m.run) for m in moments] == [(0, 3, 0), (0, 3, 0), (1, 3, 0), (2, 3, 0), (0, 3, 1)]
    assert moments[0].branch == "cond"
    assert tracker.tick(None, 7, training=True).step is None


def test_bare_denoiser(tiny_model):
    case = tiny_model("wan")
    with genkit.patch(case.model, Full(), schedule=genkit.Schedule(steps=":-1")):
        with pytest.raises(UsageError, match="total_steps"):
            case.run()
    schedule = genkit.Schedule(steps=":-1")
    with genkit.patch(case.model, Full(), roles="self", schedule=schedule, total_steps=3) as handle:
        for t in (900, 500, 100, 900):
            case.run(timestep=torch.tensor([t, t]))
        assert _steps(handle) == (0, 1) and handle.report().sites[0].ran == 3
        handle.restart()
        case.run(timestep=torch.tensor([100, 100]))
        assert handle.report().sites[0].ran == 4
    with genkit.patch(case.model, Full(), schedule=genkit.Schedule(branches="cond")):
        with pytest.raises(UsageError, match="announced as nothing"):
            case.run()
        with case.model.cache_context("cond"):
            case.run()
    for bad in (True, 2.5, "3"):
        with pytest.raises(UsageError, match="total_steps"):
            genkit.patch(case.model, Full(), total_steps=bad)


def test_training_has_no_steps():
    case = tiny.build("wan")
    case.model.train()
    with genkit.patch(case.model, Full(), schedule=genkit.Schedule(steps="1:")):
        with pytest.raises(UsageError, match="training"):
            case.forward()
    with genkit.patch(case.model, Full()) as handle:
        case.forward().sum().backward()
        assert handle.report().sites[0].steps == ()
