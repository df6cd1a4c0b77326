from typing import TYPE_CHECKING

from accelnet.lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from accelnet.cluster.agreement import check_same as check_same
    from accelnet.cluster.agreement import check_shared_directory as check_shared_directory
    from accelnet.cluster.agreement import code_fingerprint as code_fingerprint
    from accelnet.cluster.exchange import gather as gather
    from accelnet.cluster.join import initialize as initialize

# All of them need jax, and `preemption`, which every command needs, does not.
_HOMES = {
    "accelnet.cluster.agreement": ("check_same", "check_shared_directory", "code_fingerprint"),
    "accelnet.cluster.exchange": ("gather",),
    "accelnet.cluster.join": ("initialize",),
}
__getattr__, __dir__, __all__ = _lazy_names(__name__, _HOMES)
