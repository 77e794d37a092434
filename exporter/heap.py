"""The heap: what is there from the start is no matter for the garbage collector.

A full collection looks at every object, while everything else stands still. Modules, code and what was restored are
nearly all there is, and stay as long as the process does.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Keep the garbage collector from looking at what is there now, until the block ends.

    In the end it has to: what is torn down with the interpreter takes part in cycles.
    """
    gc.collect()  # what is garbage now would stay
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
