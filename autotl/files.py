"""Writing files so that nobody ever sees one half-written."""

import os
import threading
from pathlib import Path


def write(file: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, with its folder where that is missing. Text is UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.new")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)
