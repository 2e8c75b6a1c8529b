"""The folder of what genkit can make or fetch again."""

import os
from pathlib import Path


def folder() -> Path:
    """$GENKIT_CACHE, else ~/.cache/genkit."""
    return Path(os.environ.get("GENKIT_CACHE") or Path.home() / ".cache" / "genkit")
