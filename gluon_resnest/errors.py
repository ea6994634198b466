"""The one exception that means "the user can mend this", and how a command reports it."""
import contextlib
import sys


class UserError(ValueError):
    """A mistake the user can mend.

    The message is one sentence: what was expected, what came, what to do. Commands print it
    without a traceback and exit with code 2; library callers may catch it as a ValueError.
    """


class MissingExtra(UserError):
    """An optional library is absent; names the extra that brings it."""

    def __init__(self, library, extra):
        super().__init__(f"{library} is needed here but cannot be imported; "
                         f"install it with `pip install 'gluon-resnest[{extra}]'`")


@contextlib.contextmanager
def exit_on_user_error():
    """Wraps a command's main function: a UserError becomes one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def nearest(name, known):
    """Returns "; did you mean 'a' or 'b'?" for an unknown name, or "" if nothing is near."""
    import difflib
    near = difflib.get_close_matches(str(name), [str(word) for word in known], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_choice(what, value, known):
    """Raises UserError if `value` is not one of the names in `known`; `what` names the setting."""
    if value not in known:
        raise UserError(f"{what} must be one of {', '.join(known)}, got {value!r}"
                        f"{nearest(value, known)}")
