from accelnet.models.adapter import per_mode as per_mode
from accelnet.models.cnn import CNN as CNN
from accelnet.models.mlp import MLP as MLP
from accelnet.models.resnet import ResNet as ResNet
from accelnet.models.rnn import RNN as RNN
from accelnet.models.summary import Summary as Summary
from accelnet.models.summary import summary as summary
from accelnet.models.transformer import Transformer as Transformer
