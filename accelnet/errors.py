"""The errors a person can do something about."""


class UserError(ValueError):
    """Report a mistake of the user's: what came, what was expected, what to do.

    The command line prints the message alone and exits with code 2.

    Example:
        >>> raise UserError("batch_size is 0, expected at least 1: pass --batch-size")
        Traceback (most recent call last):
        accelnet.errors.UserError: batch_size is 0, expected at least 1: pass --batch-size
    """

    exit_code = 2


class DivergenceError(ArithmeticError):
    """Report a loss that became NaN or infinite. The command line exits with code 3.

    Example:
        >>> DivergenceError.exit_code
        3
    """

    exit_code = 3


class PreemptedError(RuntimeError):
    """Report a run that was told to end (SIGTERM) and saved its state. The command line exits with code 4.

    Example:
        >>> PreemptedError.exit_code
        4
    """

    exit_code = 4


class LostProcessError(RuntimeError):
    """Report a process of the run that died or does not answer. The command line exits with code 5.

    Example:
        >>> LostProcessError.exit_code
        5
    """

    exit_code = 5
