"""``python -m posgan_fast``: the same as ``posgan-fast``, for torchrun and for machines without the script."""

import sys

from .cli import main

sys.exit(main())
