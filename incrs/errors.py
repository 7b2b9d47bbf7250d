"""The one exception for a user's mistake: one sentence, no traceback, exit status 2."""

import errno
import os

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class Mistake(Exception):
    """Something the user can mend: says what came, what is allowed, and where to change it.

    Doors print the message alone and exit with status 2. Raise it only with a message that is one
    clear sentence to someone who has never read this code.
    """


def is_full(error: BaseException) -> bool:
    """Return whether an error, be it Python's or a library's own, says that a disk is full."""
    words = [os.strerror(number) for number in FULL]
    return getattr(error, "errno", None) in FULL or any(word in str(error) for word in words)
