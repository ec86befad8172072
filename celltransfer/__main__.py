"""``python -m celltransfer``."""

from celltransfer.cli import app

app(prog_name="celltransfer")
