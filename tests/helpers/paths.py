"""Folders that tests read."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
REFERENCE = TESTS / "reference"
