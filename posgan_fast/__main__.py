"""``python -m posgan_fast``: the command ``posgan-fast`` for torchrun, and for machines without the script."""

import sys

from .cli import main

sys.exit(main())
