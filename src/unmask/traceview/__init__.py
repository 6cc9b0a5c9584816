"""A trace as a page: :func:`.reader.read` checks a trace file, :func:`.document.page` makes one HTML page of it."""

VERSION = 1  # of the format
