"""For tests: a teacher's settings, written flat."""

from dataclasses import fields

from cotdistill.elicit.settings import Connection, Sampling, TeacherSettings


def group_settings(**flat) -> dict:
    """Flat settings -> arguments of `elicit_*`.

    The fields of Sampling, TeacherSettings and Connection in their dataclasses, all others as they
    are.
    """
    groups = {}
    for kind in (Sampling, TeacherSettings, Connection):
        groups[kind] = {f.name: flat.pop(f.name) for f in fields(kind) if f.name in flat}
    sampling = Sampling(**groups[Sampling])
    made = {"settings": TeacherSettings(sampling=sampling, **groups[TeacherSettings])}
    if groups[Connection]:
        made["connection"] = Connection(**groups[Connection])
    return {**flat, **made}


def group_source(**flat) -> dict:
    """The same for `from_teacher`: what names the teacher goes into its TeacherSource."""
    from cotdistill.elicit.settings import TeacherSource

    made = group_settings(**flat)
    names = [f.name for f in fields(TeacherSource) if f.name in made]
    source = TeacherSource(**{name: made.pop(name) for name in names})
    return {**made, "source": source}
