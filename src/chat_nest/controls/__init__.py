"""State that every process of a fleet must know within a second: pauses, blocks, grants, revoked sessions."""

from chat_nest.controls.live import LiveControls
from chat_nest.controls.memory import MemoryControls
from chat_nest.core.controls import Act, Control, Snapshot
from chat_nest.core.protocols import Controls, HasControls

__all__ = ["Act", "Control", "Controls", "HasControls", "LiveControls", "MemoryControls", "Snapshot"]
