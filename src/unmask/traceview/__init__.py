"""A trace as a page: ``read`` checks the lines of a trace file, ``page`` makes one HTML page of one or two traces."""

from .document import page
from .reader import VERSION, Forward, Row, Trace, read

__all__ = ["VERSION", "Forward", "Row", "Trace", "page", "read"]
