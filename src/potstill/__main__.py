"""Let launchers start potstill as a module: `torchrun -m potstill distill …`."""

import sys

from potstill.cli import main

sys.exit(main())
