"""What the lab says of its study, its training and its answers."""

import pandas as pd


def study_opened(name: str, was_run: bool) -> str:
    """Say where the lab's student and questions come from."""
    if was_run:
        return f"Student and questions are those of study **{name}**, as it was run here."
    return (
        f"Study **{name}** has not been run here. Its student and questions are set up from its "
        "YAML; what you train here is kept, and `make reproduce` will find it."
    )


def study_replaced(name: str, other: str, why: str) -> str:
    """Say that another study serves, and why."""
    return f"Study **{name}** cannot be used here ({why}). Study **{other}** serves instead."


def questions_found(shown: int, total: int) -> str:
    """Say how many questions a search found."""
    return f"{shown} of {total} questions" if shown < total else f"{total} questions"


def job_state(state: str, arms: dict[str, tuple[int, int]], said: str) -> str:
    """Say how far a job is; arms: label -> (steps made, steps in all)."""
    parts = [f"{label} step {step} of {steps}" for label, (step, steps) in arms.items() if steps]
    done = ", ".join(parts) or "no step yet"
    if state == "running":
        return f"Training: {done}. {said}"
    if state == "failed":
        return f"Failed: {said}"
    if state == "stopped":
        return f"Stopped: {done}. Train resumes from the last complete epoch."
    return f"Done: {done}." if parts else "Done: both runs were in the store."


def difference(row: pd.Series, name: str) -> str:
    """Say one paired difference with its interval, in points; row: of `paired_effects`."""
    estimate, low, high = (100 * row[column] for column in ("estimate", "low", "high"))
    clear = "the interval excludes zero" if low > 0 or high < 0 else "the interval includes zero"
    return (
        f"{name}: {row['contrast']} = {estimate:+.1f} points, 95 % interval "
        f"[{low:+.1f}, {high:+.1f}] over {row['questions']} questions; {clear}."
    )


def one_seed() -> str:
    """Say what intervals of one seed leave out."""
    return (
        "One seed each: the intervals say what other questions would change, and nothing of other "
        "seeds. The study's notebooks compare several."
    )


def disagreements(count: int, total: int, right: dict[str, int]) -> str:
    """Say on how many questions two students disagree, and who is right on how many."""
    if not count:
        return f"On all {total} questions the two are both right or both wrong."
    sides = ", ".join(f"{name} right on {n}" for name, n in right.items())
    return f"They disagree on {count} of {total} questions: {sides}."


def edit_seconds(seconds: float, method: str) -> str:
    """Say how long an edit took to score."""
    return f"scored in {seconds:.2f} s by {method.replace('_', ' ')}"


def answer(choice: str, share: float, text: str, cut_off: bool) -> str:
    """Say what a student answered."""
    wrote = f"; by itself it wrote “{text}”" if text and text != choice else ""
    cut = "; the limit of tokens cut it off" if cut_off else ""
    return f"It takes “{choice}” with {100 * share:.0f} %{wrote}{cut}."


def asked(student: str, question: str, order: str) -> str:
    """Say who was asked what."""
    return f"**{student}**, {order}: {question}"


def reason(text: str, order: str) -> str:
    """Give the reason that a student wrote, before its answer or after it."""
    when = "Before its answer" if order == "reason first" else "After its answer"
    return f"{when} it wrote: {text}" if text else f"{when} it wrote no reason."


def page_saved(path: str) -> str:
    """Say where the page for readers without a kernel lies."""
    return f"Saved: **{path}** opens in any browser, without a kernel."
