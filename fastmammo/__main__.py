"""`python -m fastmammo` is `fastmammo`."""

from __future__ import annotations

import sys

from fastmammo.cli import main

if __name__ == "__main__":
    sys.exit(main())
