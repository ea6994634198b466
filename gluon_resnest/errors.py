"""The one exception that means "the user can mend this", and how a command reports it."""
import contextlib
import numbers
import os
import select
import sys


class UserError(ValueError):
    """A mistake the user can mend.

    The message is one sentence: what was expected, what came, what to do. Commands print it
    without a traceback and exit with code 2; library callers may catch it as a ValueError.
    """


class MissingExtra(UserError):
    """A library is absent; names the extra that brings it, None for one that belongs to all."""

    def __init__(self, library, extra=None):
        wanted = f"'gluon-resnest[{extra}]'" if extra else library
        super().__init__(f"{library} is needed here but cannot be imported; "
                         f"install it with `pip install {wanted}`")


@contextlib.contextmanager
def exit_on_user_error():
    """Wraps a command's main function: a UserError becomes one line on stderr and exit code 2.

    A reader of the output that leaves early, as `head` does, ends the command without a word.
    """
    try:
        try:
            yield
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise       # it was another pipe that broke, perhaps to a worker
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())    # for Python's last flush
        sys.exit(141)   # what a shell reports of a command that SIGPIPE ended


def _is_read(stream):
    """Tells whether somebody still holds the other end of a stream that is a pipe."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def nearest(name, known):
    """Returns "; did you mean 'a' or 'b'?" for an unknown name, or "" if nothing is near."""
    import difflib
    near = difflib.get_close_matches(str(name), [str(word) for word in known], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_count(what, value):
    """Raises UserError unless `value` is a size of an MXNet array: a whole number from 1 on."""
    if not isinstance(value, numbers.Integral) or not 1 <= value < 1 << 31:
        raise UserError(f"{what} must be a whole number from 1 to {(1 << 31) - 1}, got {value!r}")


def diverged(network, images="this image"):
    """Returns the UserError of a network that gives NaN or infinity for `images`."""
    return UserError(f"the network {network} gives NaN or infinity for {images}; its weights are "
                     "damaged or its training had diverged")


def check_choice(what, value, known):
    """Raises UserError if `value` is not one of the names in `known`; `what` names the setting."""
    if value not in known:
        raise UserError(f"{what} must be one of {', '.join(known)}, got {value!r}"
                        f"{nearest(value, known)}")
