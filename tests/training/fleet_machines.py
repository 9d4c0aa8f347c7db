"""Two "machines": two network namespaces with a cable between them, each with an agent of `torchrun`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PORT = 29400


class Machine:
    """A network namespace. Whatever runs in it ends with it."""

    def __init__(self, name: str, cable: str, address: str, first: str) -> None:
        self.name, self.cable, self.address, self.first = name, cable, address, first

    def start(self, log: Path, *arguments: str, **conf: object) -> subprocess.Popen[bytes]:
        """Start an agent with one worker. The first machine hosts the rendezvous."""
        settings = {"is_host": int(self.address == self.first), "last_call_timeout": 3} | conf
        rendezvous = ",".join(f"{name}={value}" for name, value in settings.items())
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1"]
        torchrun += ["--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint={self.first}:{PORT}"]
        torchrun += ["--rdzv-id=fleet", f"--rdzv-conf={rendezvous}", f"--local-addr={self.address}"]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.cable,
            # Otherwise a machine that joins later waits for ever for an address that was told in the first round.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        command = ["ip", "netns", "exec", self.name, *torchrun, *arguments]
        with log.open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, env=env)

    def processes(self) -> list[int]:
        """Return the numbers of the processes that run in it."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def kill(self) -> None:
        """Kill all that runs in it, agent and worker, at once."""
        for process in self.processes():
            os.kill(process, signal.SIGKILL)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)


@contextmanager
def two_machines() -> Iterator[list[Machine]]:
    """Make two machines that can reach each other, and remove them with all that runs in them.

    Raises:
        subprocess.CalledProcessError: this user may make no network namespaces.
        FileNotFoundError: this system has none.
    """
    tag = f"{os.getpid() % 100_000}"
    machines = [
        Machine(f"fleet{tag}{side}", f"f{tag}{side}", f"10.77.0.{number}", "10.77.0.1")
        for number, side in enumerate("ab", 1)
    ]
    made = []
    try:
        for machine in machines:
            _ip("netns", "add", machine.name)
            made.append(machine)
            _ip("-n", machine.name, "link", "set", "lo", "up")
        here, there = machines
        _ip("link", "add", here.cable, "netns", here.name, "type", "veth", "peer", there.cable, "netns", there.name)
        for machine in machines:
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", machine.cable)
            _ip("-n", machine.name, "link", "set", machine.cable, "up")
        yield machines
    finally:
        for machine in made:
            machine.kill()
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True, check=False)


def newest_checkpoint(folder: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    steps = [path.name.partition("-")[2] for path in folder.glob("checkpoint-*")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def wait_for_checkpoint(folder: Path, step: int, agent: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Wait until there is a checkpoint of a step or a later one."""
    until = time.monotonic() + seconds
    while newest_checkpoint(folder) < step:
        assert agent.poll() is None, log.read_text()
        assert time.monotonic() < until, f"no checkpoint {step} after {seconds} seconds:\n{log.read_text()}"
        time.sleep(0.1)
