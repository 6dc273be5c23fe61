"""HD-Painter: prompt-faithful inpainting without training (Manukyan et al. 2023, arXiv:2312.14091).

Three independent parts: PAIntA (:mod:`.painta`) lowers what known tokens have to say to unknown ones where they do not
agree with the prompt; RASG (:mod:`.rasg`) steers the samples by the gradient of the prompt's own attention in the place
of their noise; a super-resolution stage (:mod:`.upscale`) for large pictures keeps the known pixels.
"""
