"""Start and stop Jupyter kernels that run in this environment alone.

Nothing of the user's start-up files or kernelspecs runs in them.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

from cotdistill.kernel_parent import KernelParent, can_fork, forked_provisioner
from cotdistill.paths import root

QUIET = "--IPKernelApp.log_level=50"  # keeps a kernel's own log out of the notebook


def isolation() -> dict[str, str]:
    """Return the environment variables that keep the user's Python set-up out of a kernel."""
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONSTARTUP": "",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }


def make_kernel(parent: KernelParent | None = None):
    """Make a Jupyter kernel, not started yet, of this Python and nothing of the user's.

    A kernelspec installed under the name python3 is ignored. The kernel's IPython folder is new and
    empty, so no start-up file and no profile of the user runs in it. Packages in ~/.local stay out.
    Progress bars are off, because in an executed notebook they would be widgets. `stop_kernel` ends
    the kernel and deletes that folder.

    parent: the process to fork it from, if it lives; its imports are done, its namespace is empty.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        env=isolation() | {"IPYTHONDIR": tempfile.mkdtemp(prefix="cotdistill-ipython-")},
    )

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return spec

    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())
    if parent and parent.is_alive():
        kernel.kernel_id = str(uuid.uuid4())
        kernel.provisioner = forked_provisioner(parent, kernel, spec, kernel.kernel_id)
    return kernel


@contextmanager
def use_kernel_parent():
    """Hold the process that kernels are forked from, or None where none can be."""
    parent = None
    if can_fork():
        with suppress(OSError):
            parent = KernelParent(isolation(), str(root()))
    try:
        yield parent
    finally:
        if parent:
            parent.stop()


def stop_kernel(kernel) -> None:
    """Kill a kernel of `make_kernel`, and delete its IPython folder.

    A kernel that was never started or has ended already is not an error.
    """
    from jupyter_core.utils import run_sync

    if kernel.has_kernel:
        run_sync(kernel.shutdown_kernel)(now=True)
    shutil.rmtree(kernel.kernel_spec.env["IPYTHONDIR"], ignore_errors=True)


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
