from accelnet.exporting.difference import Difference as Difference
from accelnet.exporting.onnx.check import check_onnx as check_onnx
from accelnet.exporting.onnx.export import to_onnx as to_onnx
