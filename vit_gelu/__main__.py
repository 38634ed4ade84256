"""``python -m vit_gelu`` is ``vit-gelu``."""

from vit_gelu.cli import main

if __name__ == "__main__":
    main()
