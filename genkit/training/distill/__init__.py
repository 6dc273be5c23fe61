"""Few-step students: a LoRA under which a model answers in a few steps, and without guidance, what it took many for.

``genkit train distill`` needs prompts and no media. A teacher, the model itself with guidance, walks from noise to
latents in many small steps; the student learns to take several of them at once. ``settings`` is what the command takes,
``grid`` the noise levels and the sampler of both, ``prompts`` what they are asked for, ``task`` the loss, ``run`` the
whole. Loop, adapter and files are those of every LoRA.
"""
