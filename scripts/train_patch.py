"""Train an attention method's own weights on a frozen model: python scripts/train_patch.py reference --minutes 25

The first argument names what is trained, as listed below; its own --help follows it. The model stays as it is; the
weights go to runs/patch-METHOD/METHOD.safetensors. A killed run goes on where it was when the same command is given
again.

On one or several GPUs: accelerate launch scripts/train_patch.py reference --tokens 20000
"""

import sys

from genkit.training.tasks.run import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
