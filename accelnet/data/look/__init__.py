"""A look at a data set: what it is in a few lines, and what may be wrong with it on a page."""

from accelnet.data.look.description import Description as Description
from accelnet.data.look.description import describe as describe
