"""Measuring decoders: problems with checkers, runs that resume, statistics, reports."""
