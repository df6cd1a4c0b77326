"""The command line of an experiment script. A verb is a function in a file of its own and a line in verbs.py."""

from accelnet.cli.entry import main as main
