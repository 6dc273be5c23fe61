"""Make toy-dit from nothing: python scripts/train_toy_dit.py --folder runs/toy-dit --minutes 230

A killed run goes on where it was when the same command is given again. ``--vae runs/toy-image`` takes the autoencoder
of that run instead of training one. On one or several GPUs:
accelerate launch scripts/train_toy_dit.py --tokens 30000 --minutes 30
"""

import sys

from genkit.training.toys.dit.run import MAKING

if __name__ == "__main__":
    sys.exit(MAKING.main_function(__doc__))
