"""How much each token of a rationale moves the label: methods, scores, checks."""
