"""Trains a masked diffusion language model: the same as `diffusion-mlm train`."""

import sys

from diffusion_mlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
