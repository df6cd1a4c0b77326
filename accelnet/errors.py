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
