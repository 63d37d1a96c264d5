"""Data-parallel training: several processes with equal weights, each on its shard of every batch.

`ranks` has the rank and the shard of this process, `launch` starts processes.

May import: core, NumPy.
"""

from nnx.distributed.ranks import Communicator, DistributedError, local_rank, rank, size, use

__all__ = ["Communicator", "DistributedError", "local_rank", "rank", "size", "use"]
