"""`python -m luban` is the command line."""

import sys

from luban.cli import main

if __name__ == "__main__":
    sys.exit(main())
