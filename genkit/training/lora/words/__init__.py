"""New words from one picture: their embeddings and a LoRA are trained, each on its own part of the picture.

The parts are found by the model itself, from what its picture tokens look at: AttenCraft (Shentu et al. 2024).
"""
