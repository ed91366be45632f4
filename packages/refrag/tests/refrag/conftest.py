"""The tests' own modules can be imported by name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # refrag_tokenizers.py
