"""`python -m accelnet`: the command `accelnet`."""

from accelnet.cli.tool import tool

if __name__ == "__main__":
    tool()
