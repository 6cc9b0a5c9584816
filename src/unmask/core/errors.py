"""The errors that users see. Each is a ``ValueError`` whose one message names the thing and what is accepted."""


class UnmaskError(ValueError):
    """Base of every error that bad input raises; the command line prints its message and exits with code 2."""


class SpecError(UnmaskError):
    """An unknown policy, cache or parameter, a value out of range, or a spec string that does not parse."""


class ModelError(UnmaskError):
    """A checkpoint that cannot be used: unknown family, missing, truncated or mismatched weights, dtype or device."""


class RequestError(UnmaskError):
    """A request that cannot be decoded: empty or too long prompt, mask id in the prompt, lengths out of range."""
