"""The processes that share the work of one command."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One process of those that `torchrun` or `accelerate launch` start; a command alone is the only one.

    Attributes:
        rank (`int`): its number, from 0.
        num_processes (`int`): how many there are.
        local_rank (`int`): its number on this machine.
    """

    rank: int = 0
    num_processes: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Process":
        """Reads RANK, WORLD_SIZE and LOCAL_RANK, as launchers set them; no process talks to another.

        Raises:
            ValueError: they are no numbers, or the rank is none of the world.
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        rank, size = environment["RANK"], environment["WORLD_SIZE"]
        local_rank = environment.get("LOCAL_RANK", "0")
        if not (rank.isdecimal() and size.isdecimal() and local_rank.isdecimal() and int(rank) < int(size)):
            raise ValueError(
                f"The environment says RANK {rank!r} of WORLD_SIZE {size!r} (LOCAL_RANK {local_rank!r}): unset them, "
                f"or start with torchrun or accelerate launch."
            )
        return cls(int(rank), int(size), int(local_rank))
