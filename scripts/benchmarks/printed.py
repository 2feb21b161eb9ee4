"""Run a micro-guest that needs somebody beside it, and show what it says: among it lines of TSC cycles.

`python -m scripts.benchmarks.printed rounds|maps TRANSPORT IMAGE`
"""

import sys
from pathlib import Path

from scripts.benchmarks.dom0 import run_maps
from scripts.benchmarks.events import run_rounds
from vmm.config.domain import DomainConfig
from vmm.xenabi.transport import Transport

if __name__ == "__main__":
    name, transport, image = sys.argv[1], Transport(sys.argv[2]), Path(sys.argv[3])
    if name == "maps":
        print(run_maps(image)[0].text)
    else:
        print(run_rounds(DomainConfig(image, vcpus=2, transport=transport))[0].text)
