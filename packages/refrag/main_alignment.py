"""``python main_alignment.py trainer.epochs=1``: alignment training; its configuration is ``conf/alignment.yaml``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from refrag.framework.run import main  # noqa: E402  (after the path)

if __name__ == "__main__":
    main("alignment")
