"""What a server is told when it starts: defaults, limits and keys. The options of ``unmask serve`` are these fields."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.config import Configured, param

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings(Configured):
    """How a server behaves.

    Raises:
        SpecError: a value out of range; names it.
    """

    name = "serve"

    model: str | None = param(None, "name of the model in requests and replies; none: its folder or hub id")
    policy: str | None = param(None, "policy of requests that name none; none: what the model recommends")
    cache: str | None = param(None, "cache of requests that name none; none: the model's, or none with a policy")
    gen_length: int | None = param(None, "max_tokens of requests that name none; none: what the model recommends", ge=1)
    max_tokens: int | None = param(None, "most tokens of a response; none: the model's context", ge=1)
    batch_size: int = param(32, "most responses decoded at a time", ge=1)
    memory: float | None = param(None, "most MiB for the responses being decoded; none: no limit", gt=0)
    max_queue: int = param(256, "most responses that wait; more are refused with 429", ge=0)
    max_body: float = param(4.0, "most MiB of a request's body; more is refused with 413", gt=0)
    timeout: float = param(600.0, "seconds after which a request ends with 504; a request may ask for fewer", gt=0)
    stall: float = param(30.0, "seconds after which a client that does not send or read is cut off", gt=0)
    grace: float = param(30.0, "seconds that running requests have to finish after SIGTERM", ge=0)
    keep_alive: float = param(15.0, "seconds between the comments that keep a stream alive", gt=0)
    host: str = param("127.0.0.1", "address to listen on")
    port: int = param(8000, "port to listen on; 0: any free one", ge=0, le=65535)
    allow_anonymous: bool = param(False, "serve without a key on an address that others can reach")
    allow_origin: str | None = param(
        None, "origin of web pages that may call the server, or *; none: no other than its own"
    )
    allow_files: bool = param(False, "let requests name policies that read files or download models")
    log_format: str = param("text", "form of the log", choices=("text", "json"))
    log_prompts: bool = param(False, "write prompts and responses to the log")
    keys: tuple[str, ...] = ()

    @property
    def budget(self) -> int | None:
        """Most bytes for the responses being decoded; None: no limit."""
        return None if self.memory is None else max(1, int(self.memory * 2**20))

    @property
    def exposed(self) -> bool:
        """Whether other machines may reach the address."""
        return self.host not in LOOPBACK
