"""Data-parallel training: several processes, each on its shard of every batch, with equal weights.

`ranks` says who this process is and what it computes, `launch` starts processes.

May import: core, NumPy.
"""

from nnx.distributed.ranks import Communicator, DistributedError, local_rank, rank, size, use

__all__ = ["Communicator", "DistributedError", "local_rank", "rank", "size", "use"]
