"""Errors for users: one line (what, where, what to do) and an exit code each."""


class Refusal(Exception):
    """An error that a user can fix. The message is one line and never holds text of the request's examples."""

    code = 1
    slug = "refused"

    def line(self) -> str:
        """The line that the command prints."""
        said = " ".join(str(self).split())
        # A file's name, or a text of a library, may hold what moves a terminal's cursor or changes its colours.
        shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)
        return f"expunge: E{self.code}-{self.slug}: {shown}"


class UsageRefused(Refusal):
    """A wrong option, name or setting."""

    code, slug = 2, "usage"


class DataRefused(Refusal):
    """A file of examples that cannot be used as it is."""

    code, slug = 3, "data"


class ModelRefused(Refusal):
    """A model, tokenizer or adapter that cannot be used as it is."""

    code, slug = 4, "model"


class RunFailed(Refusal):
    """The run failed after it had started; the last good state is kept."""

    code, slug = 5, "run"
    last_good: object = None
    """The adapted network as it was before the step that failed, where there is one."""


class EnvironmentRefused(Refusal):
    """Disk, memory, a lock, or a package that is not installed."""

    code, slug = 7, "environment"


THRESHOLDS_MISSED = 6
"""Exit code of a run that finished and missed a threshold or its own criterion."""
