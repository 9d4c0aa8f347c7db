"""`python -m potstill`, for launchers that start modules: `torchrun -m potstill distill …`."""

import sys

from potstill.cli import main

sys.exit(main())
