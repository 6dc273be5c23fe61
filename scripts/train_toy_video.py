"""Make toy-video from nothing: python scripts/train_toy_video.py --folder runs/toy-video --minutes 170

Two cores need about three hours. A killed run goes on where it was when the same command is given again. On one or
several GPUs: accelerate launch scripts/train_toy_video.py --tokens 20000 --minutes 30
"""

import sys

from genkit.training.toys.video.run import MAKING

if __name__ == "__main__":
    sys.exit(MAKING.main_function(__doc__))
