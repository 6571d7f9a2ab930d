"""Start and stop Jupyter kernels that run in this environment alone.

Nothing of the user's start-up files or kernelspecs runs in them.
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

QUIET = "--IPKernelApp.log_level=50"  # keeps a kernel's own log out of the notebook


def make_kernel():
    """Make a Jupyter kernel, not started yet, of this Python and nothing of the user's.

    A kernelspec installed under the name python3 is ignored. The kernel's IPython folder is new and
    empty, so no start-up file and no profile of the user runs in it. Packages in ~/.local stay out.
    Progress bars are off, because in an executed notebook they would be widgets. `stop_kernel` ends
    the kernel and deletes that folder.
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
    """Start a Jupyter kernel for the notebook that comes next.

    While another notebook computes, it imports what takes seconds (torch, transformers). Its
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
    """Kill a kernel of `start_kernel` or `make_kernel`, and delete its IPython folder.

    A kernel that was never started or has ended already is not an error.
    """
    from jupyter_core.utils import run_sync

    if kernel.has_kernel:
        run_sync(kernel.shutdown_kernel)(now=True)
    shutil.rmtree(kernel.kernel_spec.env["IPYTHONDIR"], ignore_errors=True)


def kernel_is_alive(kernel) -> bool:
    """Tell whether a kernel still runs: it may have been killed before its turn."""
    from jupyter_core.utils import run_sync

    return run_sync(kernel.is_alive)()


@contextmanager
def interrupt_once():
    """Let only the first Ctrl-C interrupt while the block runs, and ignore further ones.

    Stopping a kernel takes a moment, and one that is not stopped runs on as an orphan. Outside the
    main thread, and where Ctrl-C is ignored already, nothing changes.
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
