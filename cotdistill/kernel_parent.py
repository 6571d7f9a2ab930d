"""One process that imports what takes seconds (torch, transformers), and forks every kernel.

A command runs up to nine notebooks, each in a kernel of its own. Imported once instead of once a
notebook, the libraries cost a command seconds instead of a minute of processor time. On Linux
without a GPU only: CUDA does not survive a fork, nor do some of macOS's libraries; elsewhere, and
where this process has died, `make_kernel` starts plain kernels, with the same results.

The process reads one request a line, {"argv", "env", "cwd"}, and answers with the kernel's pid. It
ends when the command that started it has ended, and its kernels end with it.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

IMPORTS = (
    "ipykernel.kernelapp",
    "cotdistill.attribution.methods",
    "cotdistill.runs.grid",
    "cotdistill.plots",
)


def can_fork() -> bool:
    """Tell whether kernels may be forked on this machine."""
    gpus = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, either below Windows
    return sys.platform == "linux" and not any(Path(gpu).exists() for gpu in gpus)


class ForkedProcess:
    """A kernel that another process forked: as much of `subprocess.Popen` as Jupyter asks for."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        import psutil

        self.pid, self._process = pid, psutil.Process(pid)

    def poll(self) -> int | None:
        """Return None while it lives, then 0: its exit status is its parent's to know."""
        import psutil

        try:
            alive = self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        return None if alive else 0

    def wait(self) -> int:
        """Wait until it has ended."""
        while self.poll() is None:
            time.sleep(0.05)
        return 0

    def send_signal(self, number: int) -> None:
        """Send it a signal; raises ProcessLookupError where it has ended."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class KernelParent:
    """The command's side: start the process, ask it for kernels, end it."""

    def __init__(self, env: dict[str, str], cwd: str):
        inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cotdistill.kernel_parent"],
            env=os.environ | env | inline,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the command's
        )
        self._lock = threading.Lock()

    def is_alive(self) -> bool:
        """Tell whether it can still fork."""
        return self._process.poll() is None

    def fork(self, argv: list[str], env: dict[str, str], cwd: str) -> ForkedProcess:
        """Fork a kernel; waits for the imports if they are not done. Raises OSError if it died."""
        with self._lock:
            print(json.dumps({"argv": argv, "env": env, "cwd": cwd}), file=self._process.stdin)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise OSError("the process that forks kernels has ended")
        return ForkedProcess(int(answer))

    def stop(self) -> None:
        """End it, and so every kernel that it forked."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def forked_provisioner(parent: KernelParent, kernel, kernel_spec, kernel_id: str):
    """Return what Jupyter starts and stops a kernel by, with `parent` in the place of Popen."""
    from jupyter_client.provisioning import LocalProvisioner

    class ForkedProvisioner(LocalProvisioner):
        async def launch_kernel(self, cmd, **options):
            folder = options.get("cwd") or os.getcwd()
            self.process = parent.fork(cmd[3:], options["env"], folder)  # python -m ipykernel_…
            self.pid = self.pgid = self.process.pid
            return self.connection_info

    return ForkedProvisioner(kernel_id=kernel_id, kernel_spec=kernel_spec, parent=kernel)


def _become_kernel(request: dict, parent: int) -> None:
    """Turn this forked process into the kernel that was asked for, until it is told to end."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # 1 was the way to answer
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    from ipykernel.kernelapp import IPKernelApp

    argv = [*request["argv"], f"--IPKernelApp.parent_handle={parent}"]  # whose end is its own
    sys.argv = ["ipykernel_launcher", *argv]
    IPKernelApp.launch_instance(argv=argv)


def main() -> None:
    """Import, then fork a kernel for each line that comes in, until no more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no kernel is left behind as a zombie
    del sys.path[0]  # the working directory, which -m puts there
    for module in IMPORTS:
        importlib.import_module(module)
    gc.freeze()  # training collects after each run: libraries need not be looked through
    mine = os.getpid()
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            return _become_kernel(json.loads(line), mine)
        print(pid, flush=True)
    return None


if __name__ == "__main__":
    main()
