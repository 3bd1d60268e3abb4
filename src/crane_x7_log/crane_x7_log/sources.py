"""What the operator is told of a source that does not come: its topic, who publishes it, and what to start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from crane_x7_log.sampling import COMMANDS, STATE


class Sources:
    """The joint states, the cameras and both controllers' commands, by name.

    labels: what messages call each source. problems: why its last unusable message was so.
    """

    def __init__(self, topics: Mapping[str, str], count_publishers: Callable[[str], int] | None) -> None:
        """count_publishers: of a source's topic, None where that cannot be known."""
        self._topics = topics
        self._count_publishers = count_publishers
        self.labels = {source: f"{source} ({topic})" for source, topic in topics.items()}
        self.problems: dict[str, str] = {}

    def two_arms(self) -> str:
        """Why two publishers of joint states are refused; empty when there are not."""
        count = 0 if self._count_publishers is None else self._count_publishers(STATE)
        if count <= 1:
            return ""
        return (
            f"{count} nodes publish {self._topics[STATE]}, so the states of two arms would be mixed; "
            "stop one of them or move it to a namespace of its own (a killed node is forgotten after 20 s)"
        )

    def describe_all(self, sources: Iterable[str]) -> tuple[str, ...]:
        """A sentence for each."""
        return tuple(self._describe(source) for source in sources)

    def _describe(self, source: str) -> str:
        """What is missing, why as far as known, and what to start."""
        text = self.labels[source]
        if self._count_publishers is not None:
            count = self._count_publishers(source)
            text += f", published by {count} node{'s' if count > 1 else ''}" if count else ", which nobody publishes"
        if source in self.problems:
            text += f", last problem: {self.problems[source]}"
        if source in COMMANDS:
            return f"{text}: start the teleoperation or the policy"
        return f"{text}: start the {'arm' if source == STATE else 'camera'} or the simulated arm"
