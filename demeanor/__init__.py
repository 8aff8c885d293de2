"""Demeanor: an assistant as a stack of layers, trained, served and measured layer by layer."""

__version__ = "0.1.0"
