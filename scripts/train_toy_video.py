"""Make toy-video from nothing: python scripts/train_toy_video.py --folder runs/toy-video --minutes 170

Two cores need about three hours. A killed run goes on where it was when the same command is given again. On one or
several GPUs: accelerate launch scripts/train_toy_video.py --tokens 20000 --minutes 30
"""

import argparse
import sys

from genkit.errors import GenkitError
from genkit.training.toy_video_run import add_arguments, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except GenkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
