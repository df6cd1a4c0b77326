from accelnet.cluster.agreement import check_same as check_same
from accelnet.cluster.agreement import check_shared_directory as check_shared_directory
from accelnet.cluster.agreement import code_fingerprint as code_fingerprint
from accelnet.cluster.exchange import gather as gather
from accelnet.cluster.join import initialize as initialize
