"""F0: canvas, rows, prediction, picks and the spec grammar. Needs torch and nothing of unmask."""
