"""`python -m pal_audio` is the command `pal`."""

import sys

from pal_audio.cli import main

if __name__ == "__main__":
    sys.exit(main())
