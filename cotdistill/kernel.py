"""A Jupyter kernel of this environment alone.

Nothing of the user's start-up files or kernelspecs runs in it.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from cotdistill.paths import root

QUIET = "--IPKernelApp.log_level=50"  # for a kernel: its own notes are not the notebook's


def make_kernel():
    """A Jupyter kernel that is not started yet: this Python, and nothing of the user's.

    A kernelspec that somebody installed under the name python3 is not looked at. The kernel's
    IPython folder is a new and empty one, so no start-up file and no profile of the user runs in
    it; packages in ~/.local stay out; progress bars are off, for in an executed notebook they would
    be widgets. `stop_kernel` ends the kernel and deletes that folder.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    isolated = {
        "IPYTHONDIR": tempfile.mkdtemp(prefix="cotdistill-ipython-"),
        "PYTHONSTARTUP": "",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        env=isolated,
    )

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return spec

    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())


def start_kernel(
    imports: str = "cotdistill.attribution.methods, cotdistill.runs.grid, cotdistill.plots",
):
    """A Jupyter kernel for a notebook that comes next.

    While another one computes, it starts and imports what takes seconds (torch, transformers). Its
    namespace stays empty, and it ends with this process at the latest.
    """
    from jupyter_core.utils import run_sync

    kernel = make_kernel()
    try:
        run_sync(kernel.start_kernel)(
            cwd=str(root()),
            extra_arguments=[
                QUIET,
                "--HistoryManager.hist_file=:memory:",
                f"--IPKernelApp.exec_lines=exec('import {imports}', {{}})",
            ],
        )
    except BaseException:
        stop_kernel(kernel)
        raise
    return kernel


def stop_kernel(kernel) -> None:
    """End a kernel of `start_kernel` or `make_kernel`, and delete its IPython folder.

    Whatever it is doing, it is killed; one that was never started or has ended is no error.
    """
    from jupyter_core.utils import run_sync

    if kernel.has_kernel:
        run_sync(kernel.shutdown_kernel)(now=True)
    shutil.rmtree(kernel.kernel_spec.env["IPYTHONDIR"], ignore_errors=True)


def kernel_is_alive(kernel) -> bool:
    """Whether a kernel of `start_kernel` still runs: it may have been killed before its turn came."""
    from jupyter_core.utils import run_sync

    return run_sync(kernel.is_alive)()


@contextmanager
def interrupt_once():
    """While open, the first Ctrl-C interrupts and further ones are ignored.

    A kernel is stopped in a moment; one that isn't stopped is an orphan. Outside the main thread,
    and where Ctrl-C is ignored already, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return

    def interrupt(*_):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
