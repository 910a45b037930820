"""``python -m raybone`` is the command line."""

import sys

from raybone.cli import main

if __name__ == "__main__":
    sys.exit(main())
