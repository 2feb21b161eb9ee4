"""`python -m vmm` is `pyvmm`."""

import sys

from vmm.cli.main import main

sys.exit(main())
