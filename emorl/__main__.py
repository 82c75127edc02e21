"""`python -m emorl` is the command `emorl`."""

import sys

from emorl.cli import main

if __name__ == "__main__":
    sys.exit(main())
