"""`python -m ovs_methods` is the command `ovs`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
