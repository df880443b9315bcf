"""`python -m rrlib`, the same as the command `rrlib`."""

import sys

from rrlib.command_line.main import main

if __name__ == "__main__":
    sys.exit(main())
