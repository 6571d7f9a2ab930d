"""cotdistill: an open, reproducible study of CoT-augmented distillation (arXiv 2406.14511).

The names that notebooks use are here, flat, and are imported when they are first asked for (PEP
562): `import cotdistill` alone imports no torch.
"""

import importlib

__version__ = "0.1.0"

# Name -> the module that defines it; a module's own name stands for the module
_EXPORTS = {
    "accuracy_by_fact": "summaries",
    "accuracy_table": "stats",
    "accuracy_tables": "stats",
    "agreement_square": "attribution.checks",
    "Arm": "arms",
    "arm_from_name": "arms",
    "attributing_student": "runs.attributors",
    "breadth": "breadth",
    "completed_stages": "runs.results",
    "continue_students": "runs.continued",
    "control_arms": "grids",
    "DataError": "errors",
    "Elicitation": "elicit.stage",
    "dial_sequences": "runs.measured",
    "hypotheses": "hypotheses",
    "judge_study": "verdicts",
    "key_token_arms": "grids",
    "Lab": "lab.lab",
    "lasting": "lasting",
    "load_attributors": "runs.attributors",
    "load_history": "runs.results",
    "load_predictions": "runs.results",
    "load_stage": "runs.results",
    "masked_arms": "grids",
    "Measurement": "runs.measured",
    "mechanism": "mechanism",
    "method_choice": "method_choice",
    "MethodScores": "runs.method_scores",
    "plots": "plots",
    "pooling": "pooling",
    "rationale_quality": "rationale_quality",
    "read_selections": "attribution.score_files",
    "readings": "readings",
    "resolve": "study",
    "root": "paths",
    "run_grid": "runs.grid",
    "run_sets": "runs.set_runs",
    "say": "show",
    "show_figure": "plots",
    "shuffled_arms": "grids",
    "Study": "study",
    "summaries": "summaries",
    "tasks": "tasks",
    "table": "show",
    "training_arms": "grids",
    "unchanged_shares": "runs.results",
    "watch_students": "runs.measured",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    """Import an exported name when it is first used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cotdistill' has no attribute {name!r}")
    module = importlib.import_module(f"cotdistill.{_EXPORTS[name]}")
    value = module if name == _EXPORTS[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
