"""Generates text with a masked diffusion language model: the same as `diffusion-mlm generate`."""

import sys

from diffusion_mlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
