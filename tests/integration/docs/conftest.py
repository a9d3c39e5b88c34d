"""Lets these tests import the modules that they share, and keeps whatever a page starts away from the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trl")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
