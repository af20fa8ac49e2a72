from .answer import Answer as Answer, Caller as Caller
from .bounds import Bounds as Bounds
from .replay import Replay as Replay
from .server import make_server as make_server, serve as serve
from .session import Session as Session
from .task import PruningTask as PruningTask
from .tool_table import TOOLS as TOOLS, Tool as Tool
