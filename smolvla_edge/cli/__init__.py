"""The command `smolvla-edge`: one file a verb, collected in app.py."""

from smolvla_edge.cli.app import main

__all__ = ["main"]
