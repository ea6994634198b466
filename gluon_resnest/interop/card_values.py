"""What the fields of cards may hold."""


def number(value, low, high):
    """Tells whether a value is a number (no bool) from low to high."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and low <= value <= high)


def whole(value, low, high):
    """Tells whether a value is a whole number (no bool) from low to high."""
    return type(value) is int and low <= value <= high


def triple(values, low, high):
    """Tells whether values are three numbers from low to high."""
    return len(values) == 3 and all(number(value, low, high) for value in values)


def class_names(names, count):
    """Tells whether names are None or one text for each of `count` classes."""
    return names is None or (len(names) == count and all(isinstance(name, str) for name in names))
