r"""Make toy-image from nothing: python scripts/train_toy_image.py --folder runs/toy-image --minutes 120

A killed run goes on where it was when the same command is given again. The inpainting variant goes on from a finished
run: python scripts/train_toy_image.py --inpaint --folder runs/toy-image-inpaint --vae runs/toy-image \
    --start-from runs/toy-image/denoiser/checkpoint.pt --minutes 40
On one or several GPUs: accelerate launch scripts/train_toy_image.py --tokens 30000 --minutes 30
"""

import sys

from genkit.training.toys.image.run import MAKING

if __name__ == "__main__":
    sys.exit(MAKING.main_function(__doc__))
