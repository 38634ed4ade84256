"""Train a Vision Transformer: ``python train.py --activation gelu``. The same as ``vit-gelu train``."""

import sys

from vit_gelu.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
