"""``python -m npeff_nb``: the command, for launchers that start a module (``torchrun -m npeff_nb extract ...``)."""

import sys

from npeff_nb.cli import main

sys.exit(main())
