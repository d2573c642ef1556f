"""A Ray cluster on this machine: a head that runs no tasks, and nodes that come and go.

Prints its address, then obeys a word a line on standard input: ``add`` and ``remove`` a node.  Ends
with standard input.
"""

from __future__ import annotations

import sys
from typing import Any

from ray.cluster_utils import Cluster

_SMALL: dict[str, Any] = {"object_store_memory": 80 << 20}


def main(nodes: int, cpus: int) -> None:
    """Serve until standard input ends."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, **_SMALL},
    )
    members = [cluster.add_node(num_cpus=cpus, num_gpus=0, **_SMALL) for _ in range(nodes)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for word in sys.stdin:
        if word.strip() == "add":
            members.append(cluster.add_node(num_cpus=cpus, num_gpus=0, **_SMALL))
            cluster.wait_for_nodes()
        else:
            cluster.remove_node(members.pop(), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
