"""``python -m slotline`` is the command ``slotline``."""

import sys

from slotline.cli import main

if __name__ == "__main__":
    sys.exit(main())
