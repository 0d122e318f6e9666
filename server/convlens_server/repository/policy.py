"""Which versions of a model are served: all, the highest few, or named ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from convlens_server.v2 import model_config_pb2 as pb


@dataclass(frozen=True, slots=True)
class Policy:
    """A choice among a model's versions.

    Attributes:
        latest: How many of the highest are served; 0: as `specific` says.
        specific: These are served, whether they are there or not; empty, with `latest` 0: all are.
    """

    latest: int = 0
    specific: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: pb.ModelConfig) -> Policy:
        """What a config.pbtxt asks for: the highest version alone if it does not say."""
        policy = config.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                return cls()
            case "specific":
                return cls(specific=frozenset(policy.specific.versions))
            case _:
                return cls(latest=policy.latest.num_versions or 1)

    def choose(self, numbers: Collection[int]) -> set[int]:
        """The versions to serve, of those that are there; named ones also if they are not."""
        if self.latest:
            return set(sorted(numbers)[-self.latest :])
        return set(self.specific or numbers)


ALL = Policy()
