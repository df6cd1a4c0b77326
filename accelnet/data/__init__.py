"""Data sets: sources, their splits, and augmentation."""

from accelnet.data.augment import compose as compose
from accelnet.data.augment import random_crop as random_crop
from accelnet.data.augment import random_flip as random_flip
from accelnet.data.characters import text as text
from accelnet.data.dataset import Data as Data
from accelnet.data.encoding import undo_target as undo_target
from accelnet.data.folders import image_folder as image_folder
from accelnet.data.images import digits as digits
from accelnet.data.images import fashion_mnist as fashion_mnist
from accelnet.data.images import read_idx as read_idx
from accelnet.data.look import Description as Description
from accelnet.data.look import describe as describe
from accelnet.data.memory import from_arrays as from_arrays
from accelnet.data.memory import xor as xor
from accelnet.data.npz import npz as npz
from accelnet.data.series import japanese_vowels as japanese_vowels
from accelnet.data.series import ts as ts
from accelnet.data.source import from_source as from_source
from accelnet.data.stream import from_batches as from_batches
from accelnet.data.tabular import diamonds as diamonds
from accelnet.data.tabular import table as table
from accelnet.data.tokens import tokens as tokens
from accelnet.data.vocabulary import decode as decode
from accelnet.data.vocabulary import encode as encode
