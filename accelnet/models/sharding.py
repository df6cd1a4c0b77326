"""Which axis of a mesh cuts which parameter of accelnet's models: each has these rules as `sharding_rules`."""

from jax.sharding import PartitionSpec

_EVEN, _ODD = r"\d*[02468]", r"\d*[13579]"
_COLUMN, _ROW, _EACH = PartitionSpec(None, "model"), PartitionSpec("model", None), PartitionSpec("model")
_VECTORS = r"(bias|norm\.layer\.\w+)"

# Regular expressions of whole paths, the first that matches counts. Neighbouring layers of an MLP are cut by columns
# and by rows in turn: between the two, nothing has to be exchanged (Shoeybi et al., "Megatron-LM", 2019, section 3).
SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (rf"layers\.{_EVEN}\.linear\.kernel", _COLUMN),
    (rf"layers\.{_EVEN}\.(linear\.bias|norm\.layer\.\w+)", _EACH),
    (rf"layers\.{_ODD}\.linear\.kernel", _ROW),
    (rf"dense\.{_EVEN}\.kernel", _COLUMN),
    (rf"dense\.{_EVEN}\.bias", _EACH),
    (rf"dense\.{_ODD}\.kernel", _ROW),
    (r"(head|output|output_layer)\.kernel", _ROW),
    (r"(.*\.)?(conv|Conv)(_?\d+)?\.kernel", PartitionSpec(None, None, None, "model")),
    (rf"(.*\.)?(conv|Conv)(_?\d+)?\.{_VECTORS}", _EACH),
    (rf"(.*\.)?(stages|stem|blocks|depthwise|pointwise|first|second)\.(.*\.)?{_VECTORS}", _EACH),
    (r"(.*\.)?(forward|backward)\.(input_kernel|recurrent_kernel|recurrent_up)", _COLUMN),
    (r"(.*\.)?(forward|backward)\.(recurrent_)?bias", _EACH),
)
