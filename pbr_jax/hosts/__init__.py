"""The processes of a training that runs on several hosts, or several of one host.

JAX connects them and moves arrays between them. What is here is what people must be told: who is
in the job (`cluster`), what all of them decide alike (`job`), which of them is gone or stuck
(`watch`), and at which step all of them stop (`stop`). Every process runs the same program; the
first alone writes files and the screen.
"""

from pbr_jax.hosts.job import ALONE, Job, joined
from pbr_jax.hosts.stop import AgreedStop

__all__ = ["ALONE", "AgreedStop", "Job", "joined"]
