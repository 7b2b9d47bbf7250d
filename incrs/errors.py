"""The one exception for a user's mistake: one sentence, no traceback, exit status 2."""


class Mistake(Exception):
    """Something the user can mend: says what came, what is allowed, and where to change it.

    Doors print the message alone and exit with status 2. Raise it only with a message that is one
    clear sentence to someone who has never read this code.
    """
