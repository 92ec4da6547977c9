"""Runs language models larger than the GPU: hot neurons on the GPU, cold ones on the CPU, only the named computed."""

TYPE_CHECKING = False  # as typing's, which `hybrid` need not wait for
if TYPE_CHECKING:
    from hybrid.llm import LLM, Completion, Grammar, SamplingParams, TokenLogprob

__all__ = ["LLM", "Completion", "Grammar", "SamplingParams", "TokenLogprob"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load the engine when it is first asked for: torch takes seconds, and `hybrid --help` needs none of it."""
    if name in __all__:
        from hybrid import llm

        return getattr(llm, name)
    raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
