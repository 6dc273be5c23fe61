r"""Make toy-av from nothing: python scripts/train_toy_av.py --folder runs/toy-av --minutes 240

A killed run goes on where it was when the same command is given again. On two CPU cores, one process each:
python -m torch.distributed.run --standalone --nproc_per_node 2 scripts/train_toy_av.py --folder runs/toy-av --threads 1
On one or several GPUs: accelerate launch scripts/train_toy_av.py --tokens 20000 --minutes 40
"""

import sys

from genkit.training.toys.av.run import MAKING

if __name__ == "__main__":
    sys.exit(MAKING.main_function(__doc__))
