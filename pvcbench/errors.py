"""The two ways a run ends early, so that the command line can say which in one line."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what to do instead (exit code 2)."""


class OutOfReach(Exception):
    """A method cannot get down to the budget asked of it; the message says how far it reaches."""
