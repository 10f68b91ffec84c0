"""Run the command line with ``python -m lazypert``."""

import sys

from lazypert._cli import main

if __name__ == "__main__":
    sys.exit(main())
