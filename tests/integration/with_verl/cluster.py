"""Two nodes of Ray on one machine, which stop when standard input closes: python cluster.py GPUS_PER_NODE"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

size = {"num_cpus": 16, "num_gpus": int(sys.argv[1])}
cluster = Cluster(initialize_head=True, head_node_args=size | {"include_dashboard": False})
cluster.add_node(**size)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
