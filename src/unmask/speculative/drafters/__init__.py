"""One file per drafter; :mod:`unmask.registry` knows them by name."""
