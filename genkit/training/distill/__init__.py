"""Students: a LoRA under which a model answers in a few steps what it took many for, or under sparse attention what it
answered with dense.

``genkit train distill`` needs prompts and no media; the teacher is the model itself. Three kinds: ``task`` (several of
the teacher's steps at once), ``tdm`` (samples as likely as the teacher's) and ``features`` (dense answers under sparse
attention, with ``outputs`` of layers compared). ``settings`` is what the command takes, ``plan`` what they come to
without weights, ``kinds`` the tasks with weights, ``run`` the whole; ``student`` is what all tasks share, ``grid`` the
noise levels and the sampler, ``prompts`` what is asked for. Loop, adapter and files are those of every LoRA.
"""
