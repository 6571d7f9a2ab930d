"""The lab: train two arms, edit a rationale, ask a student, in the widgets of explore.ipynb."""
