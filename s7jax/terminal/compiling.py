"""A line on standard error for every program that had to be compiled: why the answer waits."""

import sys

LEAST = 0.5  # seconds of compiling that are worth a line
_COMPILED = "/jax/core/compile/backend_compile_duration"  # also where it was loaded instead:
_LOADED = "/jax/compilation_cache/cache_hits"


def announce() -> None:
    """Have this process say it from now on, if it has JAX: the native engine compiles nothing."""
    if "jax" not in sys.modules:
        return
    from jax import monitoring  # noqa: PLC0415 it is here already

    loaded: list[str] = []  # since the last program

    def heard(event: str, **_: object) -> None:
        if event == _LOADED:
            loaded.append(event)

    def measured(event: str, duration_secs: float, **_: object) -> None:
        if event != _COMPILED:
            return
        if duration_secs >= LEAST and not loaded:
            print(f"compiled for this machine, in {duration_secs:.1f} s", file=sys.stderr)
        loaded.clear()

    monitoring.register_event_listener(heard)
    monitoring.register_event_duration_secs_listener(measured)
