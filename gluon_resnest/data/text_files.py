"""Text and json files that people and other programs write."""
import json

from gluon_resnest.data import images
from gluon_resnest.errors import UserError


def text_lines(data):
    """Returns the lines of a text file; they end with a line feed, maybe after a carriage return.

    Args:
      data: bytes of the file, UTF-8; a byte order mark at its beginning is no part of the text.

    Raises:
      UnicodeDecodeError: if it is no UTF-8.
    """
    lines = data.decode("utf-8-sig").split("\n")
    return [line[:-1] if line.endswith("\r") else line
            for line in (lines if lines[-1] else lines[:-1])]


def read_json(file):
    """Returns what a json file holds.

    Raises:
      UserError: if it cannot be read or is no json.
    """
    try:
        return json.loads(images.read_file(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a json file ({error}); fetch it again") from error
