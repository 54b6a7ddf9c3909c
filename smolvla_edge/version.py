"""The package's version; bundles name it as their converter."""

__version__ = "0.1.0"
